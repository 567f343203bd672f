// A small repository whose habits a model cannot guess, and a file that is being written in it.
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const files = {
  "shapes.py": `"""Areas of shapes, in square metres."""


def rectangle_area(width, height):
    return width * height


def ring_area(outer_radius, inner_radius):
    return 3.14159 * (outer_radius**2 - inner_radius**2)
`,
  "report.py": `"""Prints what a room needs."""

from shapes import rectangle_area, ring_area


def carpet_report(width, height):
    carpet = rectangle_area(width, height)
    print_measure("carpet", carpet, unit="m2")


def fountain_report(outer_radius, inner_radius):
    basin = ring_area(outer_radius, inner_radius)
    print_measure("basin", basin, unit="m2")


def print_measure(name, amount, unit):
    print(f"{name}: {amount:.1f} {unit}")
`,
  "floor.py": `from report import print_measure
from shapes import rectangle_area


def floor_report(width, height):
    floor = rectangle_area(width, height)
`,
};

export interface Repository {
  folder: string;
  /** The file that is being written. */
  file: string;
}

export function makeRepository(): Repository {
  const folder = join(mkdtempSync(join(tmpdir(), "codemem-repository-")), "rooms");
  mkdirSync(folder);
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
  const git = (...args: string[]) => execFileSync("git", ["-C", folder, ...args]);
  git("init", "--quiet");
  git("add", ".");
  git("-c", "user.name=e2e", "-c", "user.email=e2e@localhost", "commit", "--quiet", "-m", "Shapes and reports");
  return { folder, file: join(folder, "floor.py") };
}
