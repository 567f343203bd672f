import { setTimeout as sleep } from "node:timers/promises";

/** Waits until `check` holds; an error in it counts as not yet. */
export async function until(
  check: () => Promise<boolean> | boolean,
  what: string,
  ms = 30_000,
  seen?: () => unknown,
): Promise<void> {
  const end = Date.now() + ms;
  while (Date.now() < end) {
    if (await Promise.resolve().then(check).catch(() => false)) return;
    await sleep(100);
  }
  const last = seen ? `; saw ${JSON.stringify(await Promise.resolve().then(seen).catch(String))}` : "";
  throw new Error(`waited ${ms / 1000} s for ${what}${last}`);
}
