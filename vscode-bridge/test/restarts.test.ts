import { expect, test } from "vitest";
import { Restarts } from "../src/restarts";

test("three restarts a minute, then no more", () => {
  const restarts = new Restarts();
  expect([0, 1000, 2000, 3000].map((now) => restarts.allow(now))).toEqual([true, true, true, false]);
});

test("a crash now and then is always survived", () => {
  const restarts = new Restarts();
  expect([0, 1, 2, 3, 4].every((hour) => restarts.allow(hour * 3_600_000))).toBe(true);
});
