import type { Failure, Folder, Status } from "./protocol";

/** All that the status bar item depends on. */
export interface Circumstances {
  readonly enabled: boolean;
  /** Whether the server has answered `initialize`. */
  readonly running: boolean;
  /** Of the server if it does not run, else of the last request. */
  readonly failure?: Failure | undefined;
  readonly status?: Status | undefined;
  /** URI of the document in front. */
  readonly document?: string | undefined;
  /** Median milliseconds of an answer, when that is too slow. */
  readonly slowMs?: number | undefined;
}

/** The status bar item, in words. */
export interface Look {
  readonly text: string;
  readonly tooltip: string;
  readonly level: "plain" | "warning" | "error";
}

export function look(now: Circumstances): Look {
  if (!now.enabled) {
    return { text: "$(circle-slash) codemem: off", tooltip: "Suggestions are turned off.", level: "plain" };
  }
  if (now.failure) {
    const tooltip = sentences(now.failure.message, now.failure.hint);
    return { text: "$(error) codemem: error", tooltip, level: "error" };
  }
  if (!now.running || !now.status) return starting;
  const folder = folderOf(now.document, now.status.folders);
  const tooltip = folder ? describe(folder) : `Model ${now.status.model}.`;
  switch (folder?.state ?? now.status.state) {
    case "starting":
      return starting;
    case "indexing": {
      const percent = folder?.percent === undefined ? "" : ` ${Math.floor(folder.percent)} %`;
      return { text: `$(sync~spin) codemem: indexing${percent}`, tooltip, level: "plain" };
    }
    case "off":
      return { text: "$(circle-slash) codemem: not indexed", tooltip, level: "plain" };
    case "error":
      return { text: "$(error) codemem: error", tooltip, level: "error" };
    case "ready":
      if (now.slowMs === undefined) return { text: "$(sparkle) codemem", tooltip, level: "plain" };
      return {
        text: "$(watch) codemem: slow",
        tooltip: `Suggestions take ${(now.slowMs / 1000).toFixed(1)} s.\n${tooltip}`,
        level: "warning",
      };
  }
}

const starting: Look = {
  text: "$(loading~spin) codemem: starting",
  tooltip: "The daemon is starting.",
  level: "plain",
};

/** The innermost folder that holds the document; without a document, the only folder. */
export function folderOf(document: string | undefined, folders: readonly Folder[]): Folder | undefined {
  if (document === undefined) return folders.length === 1 ? folders[0] : undefined;
  return folders
    .filter(({ uri }) => document.startsWith(uri.endsWith("/") ? uri : `${uri}/`))
    .toSorted((a, b) => b.uri.length - a.uri.length)[0];
}

/** A folder's memory, in one line. */
export function describe(folder: Folder): string {
  const said = sentences(folder.message, folder.hint);
  if (folder.entries === 0) return said || "No memory of this folder.";
  const memory = `${count(folder.documents, "document")}, ${count(folder.entries, "entry", "entries")}`;
  const size = `${memory}, ${megabytes(folder.bytes)}.`;
  return said ? `${size} ${said}` : size;
}

export function count(number: number, one: string, many = `${one}s`): string {
  return `${number.toLocaleString("en-US")} ${number === 1 ? one : many}`;
}

function megabytes(bytes: number): string {
  return `${(bytes / 1e6).toLocaleString("en-US", { maximumFractionDigits: bytes < 1e7 ? 1 : 0 })} MB`;
}

function sentences(...parts: (string | undefined)[]): string {
  return parts
    .filter((part) => part !== undefined && part !== "")
    .map((part) => (/[.!?]$/.test(part as string) ? part : `${part}.`))
    .join(" ");
}
