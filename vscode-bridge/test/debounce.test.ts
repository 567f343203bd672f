import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { pause } from "../src/debounce";
import { Source } from "./source";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

test("is true when the time is over", async () => {
  const source = new Source();
  const waited = pause(75, source);
  await vi.advanceTimersByTimeAsync(75);
  expect(await waited).toBe(true);
  expect(source.listeners.size).toBe(0);
});

test("is false as soon as it is cancelled, and leaves no timer", async () => {
  const source = new Source();
  const waited = pause(75, source);
  await vi.advanceTimersByTimeAsync(30);
  source.cancel();
  expect(await waited).toBe(false);
  expect(vi.getTimerCount()).toBe(0);
  expect(source.listeners.size).toBe(0);
});

test("does not wait for what was cancelled before", async () => {
  const source = new Source();
  source.cancel();
  expect(await pause(75, source)).toBe(false);
});
