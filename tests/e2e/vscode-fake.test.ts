// The extension in a real VS Code, with a scripted server: everything of its own that can go wrong without a model.
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, beforeEach, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { completesOnTab } from "./completes.ts";
import { Fake } from "./fake.ts";
import type { Script } from "./fake-server.ts";
import { makeRepository } from "./repository.ts";
import { until } from "./until.ts";
import { Workbench } from "./workbench.ts";

const { folder, file } = makeRepository();
const uri = `file://${folder}`;
const line = "rectangle_area(width, height)";
const script: Script = {
  text: `${line}\nprint(area)`,
  status: {
    folders: [{ uri, state: "ready", documents: 3, entries: 412, bytes: 1_500_000 }],
    model: "fake",
    version: "fake",
    pid: 1,
    state: "ready",
  },
  explanation: {
    text: line,
    share: 0.1,
    tokenShare: 0.2,
    sources: [
      {
        uri: `${uri}/report.py`,
        path: "report.py",
        line: 7,
        column: 14,
        symbol: "carpet_report",
        weight: 0.07,
        text: "    carpet = rectangle_area(width, height)",
      },
    ],
    snippets: [{ uri: `${uri}/shapes.py`, path: "shapes.py", firstLine: 1, lastLine: 9, weight: 0.03 }],
  },
};
const fake = newFake();
let workbench: Workbench;

function newFake(): Fake {
  return new Fake(mkdtempSync(join(tmpdir(), "codemem-fake-")), script);
}

async function untilGhost(wanted: string): Promise<void> {
  await until(async () => (await workbench.ghost()) === wanted, `ghost text "${wanted}"`, 30_000, () =>
    workbench.ghost(),
  );
}

before(async () => {
  workbench = await Workbench.open({ folder, file, command: fake.command });
  await workbench.untilStatus("codemem");
});
after(() => workbench?.close());

beforeEach(async () => {
  fake.answer(script);
  await workbench.page.keyboard.press("Escape");
  await workbench.toTheEnd();
  await workbench.type("\n");
  await workbench.page.keyboard.press("Escape");
  fake.forget();
});

test("Tab accepts, and the file has it", async () => {
  assert.equal(await completesOnTab(workbench, file, "area = "), line);
  assert.ok(readFileSync(file, "utf8").endsWith(`area = ${script.text}`));
});

test("negative control: the same check fails with a server that answers null", async () => {
  fake.answer({ ...script, text: null });
  await assert.rejects(completesOnTab(workbench, file, "area = ", { ms: 5000 }), /ghost text behind/);
  assert.ok(fake.heard("textDocument/inlineCompletion").length > 0);
});

test("a word, a line, and all: the daemon hears of each", async () => {
  await workbench.type("area = ");
  await untilGhost(line);
  await workbench.page.keyboard.press("Control+ArrowRight");
  await untilGhost("(width, height)");
  await workbench.page.keyboard.press("Control+Alt+ArrowRight");
  await until(() => fake.heard("codemem/didAccept").length === 2, "two partial accepts");
  await workbench.page.keyboard.press("Tab");
  await until(() => fake.heard("codemem/didAccept").length === 3, "the accept of all");
  const [{ id }] = fake.heard("codemem/didShow");
  assert.deepEqual(fake.heard("codemem/didAccept"), [
    { id, kind: "word", length: "rectangle_area".length },
    { id, kind: "line", length: `${line}\n`.length },
    { id, kind: "all", length: script.text!.length },
  ]);
});

test("typing what the ghost text says asks for nothing new", async () => {
  await workbench.type("area = ");
  await untilGhost(line);
  const asked = fake.heard("textDocument/inlineCompletion").length;
  await workbench.type("rect");
  await untilGhost("angle_area(width, height)");
  await sleep(500);
  assert.equal(fake.heard("textDocument/inlineCompletion").length, asked);
});

test("trigger kinds are those of LSP: 2 while typing, 1 by hand", async () => {
  await workbench.type("area = ");
  await untilGhost(line);
  await workbench.page.keyboard.press("Escape");
  await workbench.page.keyboard.press("Alt+\\");
  const kinds = () => fake.heard("textDocument/inlineCompletion").map(({ context }) => context.triggerKind);
  await until(() => kinds().includes(1), "a request by hand");
  await untilGhost(line);
  assert.deepEqual([...new Set(kinds())], [2, 1]);
});

test("fast typing asks once, and typing on asks again and gives nothing up", async () => {
  fake.answer({ ...script, delayMs: 2000 });
  await workbench.type("area = ");
  await until(() => fake.heard("textDocument/inlineCompletion").length > 0, "a request");
  assert.equal(fake.heard("textDocument/inlineCompletion").length, 1);
  await workbench.type("x");
  await until(() => fake.heard("textDocument/inlineCompletion").length === 2, "the next request");
  await untilGhost(line);
  assert.deepEqual(fake.heard("cancelled"), []);
});

test("an error is told in the status bar, not in a message, until an answer comes", async () => {
  fake.answer({ ...script, error: { message: "memory: made by another model", hint: "codemem index --rebuild ." } });
  await workbench.type("area");
  await workbench.untilStatus("codemem: error");
  assert.deepEqual(await workbench.toasts(), []);
  fake.answer(script);
  await workbench.type(" ");
  await workbench.untilStatus("codemem");
});

test("why this suggestion opens the line that was read", async () => {
  await workbench.type("area = ");
  await untilGhost(line);
  await workbench.run("codemem: Why This Suggestion");
  const expected = "7.0 %  report.py:7|carpet = rectangle_area(width, height)|3.0 %  shapes.py:1-9";
  await until(async () => (await workbench.rows()).join("|") === expected, expected, 30_000, () => workbench.rows());
  await workbench.page.keyboard.press("Enter");
  await workbench.untilPlace("report.py", "Ln 7, Col 14");
  await workbench.front("floor.py");
});

test("off stops the server, on starts it", async () => {
  await workbench.run("codemem: Turn Suggestions On or Off");
  await workbench.untilStatus("codemem: off");
  await workbench.toTheEnd();
  await workbench.type("area = ");
  await sleep(500);
  assert.deepEqual(fake.heard("textDocument/inlineCompletion"), []);
  await workbench.run("codemem: Turn Suggestions On or Off");
  await workbench.untilStatus("codemem");
});

test("a server that dies is started again, and given up when it keeps dying", async () => {
  fake.answer({ ...script, dies: true });
  await workbench.type("area");
  await workbench.untilStatus("codemem: error");
  assert.deepEqual(await workbench.toasts(), []);
  fake.answer(script);
  await workbench.run("codemem: Restart");
  await workbench.untilStatus("codemem");
});

test("nothing starts in a folder that is not trusted", async () => {
  const other = newFake();
  const untrusted = await Workbench.open({ folder, file, command: other.command, askForTrust: true });
  try {
    await untrusted.page.getByText("Restricted Mode is intended").waitFor();
    await sleep(5000);
    assert.equal(other.started, false);
    await untrusted.page.getByRole("button", { name: "Manage" }).first().click();
    await untrusted.page.getByRole("button", { name: "Trust", exact: true }).click();
    await untrusted.untilStatus("codemem");
    assert.equal(other.started, true);
  } finally {
    await untrusted.close();
  }
});
