// Bundles the extension into dist/extension.js, and the licences of what is bundled into dist/licenses.txt.
import { readFile, readdir, writeFile } from "node:fs/promises";
import { build } from "esbuild";

const { metafile } = await build({
  entryPoints: ["src/extension.ts"],
  outfile: "dist/extension.js",
  bundle: true,
  minify: true,
  platform: "node",
  target: "node20",
  external: ["vscode"],
  metafile: true,
});

const folders = new Set(
  Object.keys(metafile.inputs).flatMap((file) => file.match(/^.*node_modules\/(@[^/]+\/)?[^/]+/)?.[0] ?? []),
);
const licenses = [...folders].sort().map(async (folder) => {
  const name = (await readdir(folder)).find((file) => /^licen[sc]e/i.test(file));
  if (!name) throw new Error(`${folder} has no licence file: the bundle may not contain it`);
  return `${folder.replace(/^.*node_modules\//, "")}\n\n${await readFile(`${folder}/${name}`, "utf8")}`;
});
await writeFile("dist/licenses.txt", (await Promise.all(licenses)).join(`\n${"-".repeat(80)}\n\n`));
