import { readFileSync } from "node:fs";
import { until } from "./until.ts";
import type { Workbench } from "./workbench.ts";

/** Ghost text behind a typed line, accepted with Tab and saved: gives what the file on disk got. */
export async function completesOnTab(
  workbench: Workbench,
  file: string,
  line: string,
  { ms = 20_000, beforeTab = async () => {} } = {},
): Promise<string> {
  await workbench.toTheEnd();
  await workbench.type(line);
  await until(async () => (await workbench.ghost()).trim() !== "", `ghost text behind "${line}"`, ms);
  await beforeTab();
  const ghost = await workbench.ghost();
  await workbench.page.keyboard.press("Tab");
  await workbench.page.keyboard.press("Control+S");
  await until(() => readFileSync(file, "utf8").includes(line + ghost), `"${line + ghost}" in the file`, 5000, () =>
    readFileSync(file, "utf8"),
  );
  return ghost;
}
