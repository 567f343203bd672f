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
  const seen = () => until(async () => says.test(await ghost()), `ghost text behind "${line}"`, ms, ghost);
  await seen().catch(async () => {
    // On a busy machine the daemon may not meet its deadline: going on typing asks again.
    await workbench.page.keyboard.press("Backspace");
    await workbench.type(line.slice(-1));
    await seen();
  });
  await beforeTab();
  const completed = line + (await ghost());
  await workbench.page.keyboard.press("Tab");
  await workbench.page.keyboard.press("Control+S");
  const saved = () => readFileSync(file, "utf8");
  await until(() => saved().includes(completed), `"${completed}" in the file`, 30_000, saved);
  return completed.slice(line.length);
}
