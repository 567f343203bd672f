import { expect, test } from "vitest";
import { requestFailure, startFailure } from "../src/failure";

test("an error of the daemon keeps its hint", () => {
  const [message, hint] = ["memory: made by another model", "codemem index --rebuild"];
  expect(requestFailure(Object.assign(new Error(message), { data: { hint } }))).toEqual({ message, hint });
});

test("other errors, and what is no error, have a message", () => {
  expect(requestFailure(new Error("timed out"))).toEqual({ message: "timed out" });
  expect(requestFailure("broken")).toEqual({ message: "broken" });
  expect(requestFailure(undefined)).toEqual({ message: "undefined" });
});

test("a missing program is told by name, with the setting that mends it", () => {
  const failure = startFailure("codemem", new Error("Launching server failed. Error: spawn codemem ENOENT"));
  expect(failure.message).toContain('"codemem"');
  expect(failure.hint).toContain("codemem.command");
});
