import { describe as group, expect, test } from "vitest";
import type { Folder, Status } from "../src/protocol";
import { describe, folderOf, look, type Circumstances } from "../src/status";

const folder: Folder = { uri: "file:///src/app", state: "ready", documents: 12, entries: 3456, bytes: 7_340_000 };

function circumstances(news: Partial<Folder> = {}, more: Partial<Circumstances> = {}): Circumstances {
  const folders = [{ ...folder, ...news }];
  const status: Status = { folders, model: "smollm2-135m", version: "0.1.0", pid: 7, state: folders[0]!.state };
  return { enabled: true, running: true, status, document: "file:///src/app/main.py", ...more };
}

group("look", () => {
  test.each<[string, Circumstances]>([
    ["$(circle-slash) codemem: off", circumstances({}, { enabled: false })],
    ["$(loading~spin) codemem: starting", circumstances({}, { running: false })],
    ["$(loading~spin) codemem: starting", circumstances({}, { status: undefined })],
    ["$(loading~spin) codemem: starting", circumstances({ state: "starting" })],
    ["$(sync~spin) codemem: indexing 42 %", circumstances({ state: "indexing", percent: 42.7 })],
    ["$(sync~spin) codemem: indexing", circumstances({ state: "indexing" })],
    ["$(sparkle) codemem", circumstances()],
    ["$(watch) codemem: slow", circumstances({}, { slowMs: 3210 })],
    ["$(circle-slash) codemem: not indexed", circumstances({ state: "off", entries: 0 })],
    ["$(error) codemem: error", circumstances({ state: "error", message: "the store is damaged" })],
    ["$(error) codemem: error", circumstances({}, { failure: { message: "gone" } })],
  ])("%s", (text, now) => {
    expect(look(now).text).toBe(text);
  });

  test("the tooltip says what went wrong and what to type", () => {
    const off = look(circumstances({ state: "off", entries: 0, message: "no memory here", hint: "codemem index ." }));
    expect(off.tooltip).toBe("no memory here. codemem index .");
    const failed = look(circumstances({}, { failure: { message: "gone", hint: "codemem: Restart" } }));
    expect(failed).toMatchObject({ tooltip: "gone. codemem: Restart.", level: "error" });
  });

  test("a slow daemon says how slow, and keeps saying what it has", () => {
    const { tooltip, level } = look(circumstances({}, { slowMs: 3210 }));
    expect(tooltip).toBe("Suggestions take 3.2 s.\n12 documents, 3,456 entries, 7.3 MB.");
    expect(level).toBe("warning");
  });

  test("without a folder for the document, the daemon's own state counts", () => {
    expect(look(circumstances({}, { document: "file:///elsewhere/x.py" })).text).toBe("$(sparkle) codemem");
  });
});

group("folderOf", () => {
  const inner = { ...folder, uri: "file:///src/app/vendored" };

  test("the innermost folder wins, and a longer name is another folder", () => {
    expect(folderOf("file:///src/app/vendored/a.py", [folder, inner])).toBe(inner);
    expect(folderOf("file:///src/app/a.py", [folder, inner])).toBe(folder);
    expect(folderOf("file:///src/app2/a.py", [folder, inner])).toBeUndefined();
  });

  test("without a document, only an only folder", () => {
    expect(folderOf(undefined, [folder])).toBe(folder);
    expect(folderOf(undefined, [folder, inner])).toBeUndefined();
  });
});

test("describe counts one as one", () => {
  expect(describe({ ...folder, documents: 1, entries: 1 })).toBe("1 document, 1 entry, 7.3 MB.");
});
