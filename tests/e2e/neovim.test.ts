// Neovim with the configuration that docs/editors.md gives, and the real daemon.
import assert from "node:assert/strict";
import {
  execFileSync,
  spawn,
  type ChildProcess,
  type ExecFileSyncOptionsWithStringEncoding,
} from "node:child_process";
import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { Daemon } from "./daemon.ts";
import { makeRepository } from "./repository.ts";
import { until } from "./until.ts";

const { folder, file } = makeRepository();
const daemon = new Daemon();
const socket = join(daemon.directory, "nvim.sock");
const config = join(daemon.directory, "init.lua");
let neovim: ChildProcess;

/** Neovim says on stderr that an expression failed, which it may until it has come up. */
const quiet: ExecFileSyncOptionsWithStringEncoding = {
  encoding: "utf8",
  stdio: ["ignore", "pipe", "ignore"],
  timeout: 10_000,
};

/** Keys, as a person types them. */
function send(keys: string): void {
  execFileSync("nvim", ["--server", socket, "--remote-send", keys], { timeout: 10_000 });
}

/** The value of a Lua expression in the running Neovim. */
function lua(expression: string): any {
  const call = `json_encode(luaeval(${JSON.stringify(expression)}))`;
  const args = ["--server", socket, "--remote-expr", call];
  return JSON.parse(execFileSync("nvim", args, quiet));
}

function ghost(): string {
  const namespace = 'vim.api.nvim_create_namespace("nvim.lsp.inline_completion")';
  const marks: any[] = lua(`vim.api.nvim_buf_get_extmarks(0, ${namespace}, 0, -1, { details = true })`);
  return marks.flatMap(([, , , details]) => details.virt_text ?? []).map(([text]) => text).join("");
}

before(async () => {
  const documentation = readFileSync(join(import.meta.dirname, "../../docs/editors.md"), "utf8");
  writeFileSync(config, documentation.match(/```lua\n([^]*?)```/)![1]);
  execFileSync(daemon.command, ["index", folder], { stdio: "ignore" });
  const env = { ...process.env, PATH: `${daemon.directory}:${process.env.PATH}` };
  const args = ["--headless", "--clean", "-u", config, "--listen", socket, file];
  neovim = spawn("nvim", args, { cwd: folder, env, stdio: "ignore" });
  const state = 'vim.lsp.get_clients()[1]:request_sync("codemem/status", vim.empty_dict(), 5000).result.state';
  await until(() => lua(state) === "ready", "the daemon", 120_000);
});
after(async () => {
  if (neovim?.kill()) await once(neovim, "exit");
  daemon.forget();
});

test("ghost text of the daemon, accepted with Tab, is in the saved file", async () => {
  send("Goprint_m");
  for (let tries = 1; ghost().trim() === ""; tries++) {
    const waited = until(() => ghost().trim() !== "", "ghost text", 10_000);
    if (tries === 3) await waited;
    // On a busy machine the daemon may not meet its deadline: going on typing asks again.
    else await waited.catch(() => ["<BS>", "m"].forEach(send));
  }
  const text = ghost();
  send("<Tab>");
  await until(() => lua("vim.api.nvim_get_current_line()") === `    print_m${text}`, "the accepted line", 30_000, () =>
    lua("vim.api.nvim_get_current_line()"),
  );
  send("<Esc>:write<CR>");
  await until(() => readFileSync(file, "utf8").includes(`    print_m${text}`), "the saved file");
});

test("why: the lines that memory read are in the quickfix list", async () => {
  send(":CodememWhy<CR>");
  await until(() => lua("#vim.fn.getqflist()") > 0, "the quickfix list");
  const [{ bufnr, lnum }] = lua("vim.fn.getqflist()");
  send(":cfirst<CR>");
  await until(() => lua("vim.fn.bufnr()") === bufnr && lua("vim.fn.line('.')") === lnum, "its first line");
  assert.ok(lua("vim.fn.expand('%:p')").startsWith(folder));
});
