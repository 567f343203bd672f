import { expect, test } from "vitest";
import { Pace } from "../src/pace";

function paced(...times: number[]): Pace {
  const pace = new Pace();
  for (const time of times) pace.record(time);
  return pace;
}

test("says nothing before it has seen enough", () => {
  expect(paced(9000, 9000, 9000, 9000).slow).toBe(false);
});

test("one slow answer is not slow, most of them are", () => {
  expect(paced(100, 100, 9000, 100, 100).slow).toBe(false);
  expect(paced(100, 9000, 9000, 9000, 100).slow).toBe(true);
});

test("forgets old answers", () => {
  const pace = paced(9000, 9000, 9000, 9000, 9000, 100, 120, 140);
  expect(pace.median).toBe(140);
  expect(pace.slow).toBe(false);
});
