import { readFileSync } from "node:fs";
import { until } from "./until.ts";
import type { Workbench } from "./workbench.ts";

interface Options {
  /** Ask by hand too: unlike what comes by itself, that has no deadline. */
  byHand?: boolean;
  /** What the ghost text must say. */
  says?: RegExp;
  ms?: number;
  beforeTab?: () => Promise<void>;
}

/** Ghost text behind a typed line, accepted with Tab and saved: gives the ghost text that the file on disk got. */
export async function completesOnTab(
  workbench: Workbench,
  file: string,
  line: string,
  { byHand = false, says = /\S/, ms = 10_000, beforeTab = async () => {} }: Options = {},
): Promise<string> {
  await workbench.toTheEnd();
  await workbench.type(line);
  if (byHand) await workbench.page.keyboard.press("Alt+\\");
  const ghost = () => workbench.ghost();
  const seen = async () => says.test(await ghost());
  const what = `ghost text behind "${line}"`;
  for (let tries = 1; !(await seen()); tries++) {
    const waited = until(seen, what, ms, ghost);
    if (tries === 3) await waited;
    // On a busy machine the daemon may not meet its deadline: going on typing asks again.
    else await waited.catch(() => retype(workbench, line.slice(-1)));
  }
  await beforeTab();
  const completed = line + (await ghost());
  await workbench.page.keyboard.press("Tab");
  await workbench.page.keyboard.press("Control+S");
  const saved = () => readFileSync(file, "utf8");
  await until(() => saved().includes(completed), `"${completed}" in the file`, 30_000, saved);
  return completed.slice(line.length);
}

async function retype(workbench: Workbench, character: string): Promise<void> {
  await workbench.page.keyboard.press("Backspace");
  await workbench.type(character);
}
