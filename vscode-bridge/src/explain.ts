import type { Explanation } from "./protocol";

/** A row of the list that answers "why this suggestion". A row without a place is a heading. */
export interface Row {
  readonly label: string;
  readonly description?: string;
  readonly detail?: string;
  /** Line and column from 0, as editors count. */
  readonly place?: { readonly uri: string; readonly line: number; readonly column: number };
}

/** The lines that memory read, the heaviest first, then the snippets that stood in the prompt. */
export function rows(explanation: Explanation): Row[] {
  const sources = heaviestFirst(explanation.sources).map(({ uri, path, line, column, symbol, weight, text }) => ({
    label: `${percent(weight)}  ${path}:${line}`,
    ...(symbol === null ? {} : { description: symbol }),
    detail: text.trim(),
    place: { uri, line: line - 1, column: column - 1 },
  }));
  const snippets = heaviestFirst(explanation.snippets).map(({ uri, path, firstLine, lastLine, weight }) => ({
    label: `${percent(weight)}  ${path}:${firstLine}-${lastLine}`,
    place: { uri, line: firstLine - 1, column: 0 },
  }));
  return [
    ...(sources.length > 0 ? [{ label: "Lines that memory read" }, ...sources] : []),
    ...(snippets.length > 0 ? [{ label: "Snippets that stood in the prompt" }, ...snippets] : []),
  ];
}

/** What memory was worth for this completion, in one sentence. */
export function summary({ share, tokenShare }: Explanation): string {
  return `Memory had ${percent(share)} of the attention of its layers and ${percent(tokenShare)} of the next token`;
}

function heaviestFirst<T extends { weight: number }>(items: readonly T[]): T[] {
  return items.toSorted((a, b) => b.weight - a.weight);
}

function percent(share: number): string {
  return `${(100 * share).toFixed(1)} %`;
}
