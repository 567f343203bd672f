import { describe, expect, test } from "vitest";
import { follow, rest, type Shown } from "../src/shown";

const text = "area(width, height)\nprint(area)";
const shown: Shown = { id: "c1", uri: "file:///a.py", start: 100, text, replaces: 0, consumed: 0 };
const at = (consumed: number): Shown => ({ ...shown, consumed });

describe("follow", () => {
  test("a typed key goes along the completion, and is no accept", () => {
    expect(follow(shown, [{ offset: 100, removed: 0, text: "a" }])).toEqual({ shown: at(1) });
  });

  test("another key ends it", () => {
    expect(follow(shown, [{ offset: 100, removed: 0, text: "x" }])).toEqual({ shown: undefined });
  });

  test("several characters at once are an accepted word", () => {
    expect(follow(at(5), [{ offset: 105, removed: 0, text: "width" }])).toEqual({
      shown: at(10),
      accepted: { kind: "word", length: 10 },
    });
  });

  test("up to the end of the line is an accepted line, with or without its end", () => {
    const line = text.indexOf("\n");
    for (const length of [line, line + 1]) {
      expect(follow(shown, [{ offset: 100, removed: 0, text: text.slice(0, length) }]).accepted).toEqual({
        kind: "line",
        length,
      });
    }
  });

  test("VS Code writes again what was typed of the completion before", () => {
    expect(follow(at(2), [{ offset: 100, removed: 2, text: "area" }])).toEqual({
      shown: at(4),
      accepted: { kind: "word", length: 4 },
    });
  });

  test("all of it at once is left to the item's command", () => {
    expect(follow(shown, [{ offset: 100, removed: 0, text }])).toEqual({ shown: undefined });
  });

  test.each([
    ["deleting", [{ offset: 103, removed: 1, text: "" }]],
    ["a change elsewhere", [{ offset: 40, removed: 0, text: "area" }]],
    ["replacing what stands behind", [{ offset: 104, removed: 3, text: "(width" }]],
    ["several cursors", [{ offset: 104, removed: 0, text: "(" }, { offset: 300, removed: 0, text: "(" }]],
  ])("%s ends it", (_, edits) => {
    expect(follow(at(4), edits)).toEqual({ shown: undefined });
  });
});

describe("rest", () => {
  test("is what is left where the completion has got to", () => {
    expect(rest(at(5), "file:///a.py", 105)).toBe("width, height)\nprint(area)");
  });

  test("is nothing anywhere else", () => {
    expect(rest(at(5), "file:///a.py", 104)).toBeUndefined();
    expect(rest(at(5), "file:///b.py", 105)).toBeUndefined();
    expect(rest(undefined, "file:///a.py", 105)).toBeUndefined();
  });
});
