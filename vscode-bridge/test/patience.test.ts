import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Patience } from "../src/patience";
import { Source } from "./source";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

test("what nobody asks again is given up after a while", () => {
  const [patience, source, giveUp] = [new Patience(), new Source(), vi.fn()];
  patience.hold("a.py", source, giveUp);
  vi.advanceTimersByTime(10 * Patience.ms);
  expect(giveUp).not.toHaveBeenCalled();
  source.cancel();
  vi.advanceTimersByTime(Patience.ms - 1);
  expect(giveUp).not.toHaveBeenCalled();
  vi.advanceTimersByTime(1);
  expect(giveUp).toHaveBeenCalledOnce();
});

test("typing on leaves it to the daemon, in another document it does not", () => {
  const [patience, typed, left] = [new Patience(), vi.fn(), vi.fn()];
  const [one, two] = [new Source(), new Source()];
  patience.hold("a.py", one, typed);
  one.cancel();
  patience.hold("a.py", new Source(), vi.fn());
  patience.hold("b.py", two, left);
  two.cancel();
  patience.hold("a.py", new Source(), vi.fn());
  vi.advanceTimersByTime(Patience.ms);
  expect(typed).not.toHaveBeenCalled();
  expect(left).toHaveBeenCalledOnce();
});

test("nothing is given up that has its answer", () => {
  const [patience, source, giveUp] = [new Patience(), new Source(), vi.fn()];
  const answered = patience.hold("a.py", source, giveUp);
  source.cancel();
  answered();
  expect(vi.getTimerCount()).toBe(0);
  expect(source.listeners.size).toBe(0);
});
