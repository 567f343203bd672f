// The real `codemem`, with a daemon of its own that leaves soon after its last client.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export class Daemon {
  /** A directory with the program `codemem`, for the PATH. */
  readonly directory = mkdtempSync(join(tmpdir(), "codemem-e2e-"));
  readonly command = join(this.directory, "codemem");

  constructor() {
    const program = `#!/bin/sh
export CODEMEM_RUNTIME='${this.directory}/run' CODEMEM_STATE='${this.directory}/state'
[ "$1" != lsp ] || set -- "$@" --idle 0.05
exec '${process.env.CODEMEM}' "$@"
`;
    writeFileSync(this.command, program, { mode: 0o755 });
  }

  forget(): void {
    rmSync(this.directory, { recursive: true, force: true });
  }
}
