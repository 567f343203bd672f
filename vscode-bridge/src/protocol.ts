/** What the daemon says beyond LSP: the requests and notifications whose names start with `codemem/`. */

export type FolderState = "starting" | "indexing" | "ready" | "off" | "error";

export interface Folder {
  uri: string;
  state: FolderState;
  percent?: number;
  documents: number;
  entries: number;
  bytes: number;
  message?: string;
  hint?: string;
}

/** Answer to `codemem/status`, and what `codemem/statusChanged` carries. */
export interface Status {
  folders: Folder[];
  model: string;
  version: string;
  pid: number;
  state: FolderState;
}

/** A line that memory read. Lines and columns count from 1; weights are shares of one. */
export interface Source {
  uri: string;
  path: string;
  line: number;
  column: number;
  symbol: string | null;
  weight: number;
  text: string;
}

/** Lines of the repository that stood in the prompt. */
export interface Snippet {
  uri: string;
  path: string;
  firstLine: number;
  lastLine: number;
  weight: number;
}

/** Answer to `codemem/explain`. */
export interface Explanation {
  id: string;
  text: string;
  share: number;
  tokenShare: number;
  sources: Source[];
  snippets: Snippet[];
}

/** Answer to `codemem/index`. */
export interface Indexed {
  documents: number;
  entries: number;
  encoded: number;
  seconds: number;
}

export type AcceptKind = "all" | "line" | "word";

/** What went wrong, and what to do next. */
export interface Failure {
  message: string;
  hint?: string;
}
