// The fake server as a program that `codemem.command` can name.
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Script } from "./fake-server.ts";

export class Fake {
  readonly command: string;
  private readonly scriptFile: string;
  private readonly log: string;

  constructor(directory: string, script: Script) {
    this.scriptFile = join(directory, "script.json");
    this.log = join(directory, "log.jsonl");
    this.command = join(directory, "fake-codemem");
    const server = join(import.meta.dirname, "fake-server.ts");
    const program = `#!/bin/sh\nexec '${process.execPath}' '${server}' '${this.scriptFile}' '${this.log}' "$@"\n`;
    writeFileSync(this.command, program, { mode: 0o755 });
    this.answer(script);
  }

  answer(script: Script): void {
    writeFileSync(this.scriptFile, JSON.stringify(script));
  }

  /** Parameters of the messages of one method, in order. */
  heard(method: string): any[] {
    if (!existsSync(this.log)) return [];
    const lines = readFileSync(this.log, "utf8").trimEnd().split("\n");
    const messages = lines.map((line) => JSON.parse(line));
    return messages.filter((message) => message.method === method).map((message) => message.params);
  }

  /** Starts the record anew. */
  forget(): void {
    rmSync(this.log, { force: true });
  }

  /** Whether anything started it. */
  get started(): boolean {
    return existsSync(this.log);
  }
}
