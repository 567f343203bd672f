import { expect, test } from "vitest";
import { wanted } from "../src/languages";

test.each([
  ["python", [], [], true],
  ["markdown", [], ["markdown"], false],
  ["python", ["python", "go"], [], true],
  ["rust", ["python", "go"], [], false],
  ["go", ["python", "go"], ["go"], false],
])("%s with include %j and exclude %j: %s", (language, include, exclude, expected) => {
  expect(wanted(language, include, exclude)).toBe(expected);
});
