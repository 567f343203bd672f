// VS Code with the real daemon: a repository is indexed, a line typed, ghost text accepted and saved, a source opened.
import { execFileSync } from "node:child_process";
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

test("ghost text that only the rest of the repository explains, accepted with Tab, is in the saved file", async () => {
  const beforeTab = () => workbench.picture("ghost-text");
  await completesOnTab(workbench, file, "    print_m", { byHand: true, ms: 60_000, says: /unit="m2"/, beforeTab });
});

test("why this suggestion opens a line that memory read", async () => {
  await workbench.run("codemem: Why This Suggestion");
  const first = async () => (await workbench.rows())[0]?.match(/^[\d.]+ % +(\S+):(\d+)$/);
  await until(async () => Boolean(await first()), "a line that memory read", 30_000, () => workbench.rows());
  await workbench.picture("why-this-suggestion");
  const [, path = "", line = ""] = (await first()) ?? [];
  await workbench.page.keyboard.press("Enter");
  await workbench.untilPlace(path, `Ln ${line}, `);
});

test("ghost text comes by itself while typing", async () => {
  await workbench.front("floor.py");
  await workbench.toTheEnd();
  await workbench.type("\n");
  await completesOnTab(workbench, file, "ceiling = rect");
});
