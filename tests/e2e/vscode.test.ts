// VS Code with the real daemon: a repository is indexed, a line typed, ghost text accepted and saved, its sources opened.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { completesOnTab } from "./completes.ts";
import { Daemon } from "./daemon.ts";
import { makeRepository } from "./repository.ts";
import { until } from "./until.ts";
import { Workbench } from "./workbench.ts";

const { folder, file } = makeRepository();
const daemon = new Daemon();
let workbench: Workbench;

before(async () => {
  execFileSync(daemon.command, ["index", folder], { stdio: "ignore" });
  workbench = await Workbench.open({ folder, file, command: daemon.command });
});
after(async () => {
  await workbench?.close();
  daemon.forget();
});

test("the status bar says when it is ready, and what it has", async () => {
  await workbench.untilStatus("codemem");
  await workbench.run("codemem: Show Status");
  await until(async () => (await workbench.rows())[0]?.endsWith(": ready") ?? false, "the folder's state");
  await workbench.picture("status");
  await workbench.page.keyboard.press("Escape");
});

test("ghost text of the daemon, accepted with Tab, is in the saved file", async () => {
  const ghost = await completesOnTab(workbench, file, "area = rect", {
    ms: 60_000,
    beforeTab: () => workbench.picture("ghost-text"),
  });
  assert.match(ghost, /\S/);
});

test("why this suggestion opens a line that memory read", async () => {
  await workbench.run("codemem: Why This Suggestion");
  await until(async () => (await workbench.rows()).length > 0, "the lines that memory read", 30_000);
  await workbench.picture("why-this-suggestion");
  const [, path, line] = (await workbench.rows())[0]?.match(/^[\d.]+ % +(\S+):(\d+)$/) ?? [];
  assert.ok(path && line, "the first row names a line");
  await workbench.page.keyboard.press("Enter");
  await until(
    async () => (await workbench.place()).position.startsWith(`Ln ${line}, `),
    `line ${line} of ${path} in front`,
    10_000,
    () => workbench.place(),
  );
  assert.equal((await workbench.place()).file, path);
  assert.ok(readFileSync(join(folder, path), "utf8").split("\n").length >= Number(line));
});
