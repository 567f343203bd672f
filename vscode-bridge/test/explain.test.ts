import { expect, test } from "vitest";
import { rows, summary } from "../src/explain";
import type { Explanation, Source } from "../src/protocol";

const source: Source = {
  uri: "file:///r/shapes.py",
  path: "shapes.py",
  line: 12,
  column: 5,
  symbol: "area",
  weight: 0.071,
  text: "    return width * height\n",
};
const explanation: Explanation = {
  id: "c1",
  text: "area(2, 3)",
  share: 0.108,
  tokenShare: 0.219,
  sources: [{ ...source, line: 3, symbol: null, weight: 0.02 }, source],
  snippets: [{ uri: "file:///r/a.py", path: "a.py", firstLine: 21, lastLine: 40, weight: 0.034 }],
};

test("the heaviest line first, places counted from 0", () => {
  const [heading, first, second] = rows(explanation);
  expect(heading).toEqual({ label: "Lines that memory read" });
  expect(first).toEqual({
    label: "7.1 %  shapes.py:12",
    description: "area",
    detail: "return width * height",
    place: { uri: "file:///r/shapes.py", line: 11, column: 4 },
  });
  expect(second).toMatchObject({ label: "2.0 %  shapes.py:3" });
  expect(second).not.toHaveProperty("description");
});

test("snippets come after, under their own heading", () => {
  expect(rows(explanation).slice(3)).toEqual([
    { label: "Snippets that stood in the prompt" },
    { label: "3.4 %  a.py:21-40", place: { uri: "file:///r/a.py", line: 20, column: 0 } },
  ]);
});

test("nothing read, nothing listed", () => {
  expect(rows({ ...explanation, sources: [], snippets: [] })).toEqual([]);
});

test("the summary gives both shares", () => {
  expect(summary(explanation)).toBe(
    "Memory had 10.8 % of the attention of its layers and 21.9 % of the next token",
  );
});
