import type { AcceptKind } from "./protocol";

/**
 * The completion in front of the user.
 *
 * VS Code tells an extension of a whole accept only, through the item's command: the callbacks for showing and for
 * partial accepts are a proposed API that released extensions cannot use. Accepting a word or a line is therefore seen
 * by what it does: it puts more than one character of the completion in at once. A one-character word looks like a
 * typed key and is not counted.
 */
export interface Shown {
  readonly id: string;
  /** Document and offset where the completion starts. */
  readonly uri: string;
  readonly start: number;
  readonly text: string;
  /** Characters behind the cursor that the completion repeats, and replaces when it is accepted. */
  readonly replaces: number;
  /** Characters of `text` that already stand in the document, typed or accepted. */
  readonly consumed: number;
}

/** A change of the document: `removed` characters at `offset` became `text`. */
export interface Edit {
  readonly offset: number;
  readonly removed: number;
  readonly text: string;
}

export interface Followed {
  /** Undefined when the document no longer goes the way of the completion, or has all of it. */
  readonly shown: Shown | undefined;
  /** `length` counts the characters of the completion that stand in the document by now. */
  readonly accepted?: { readonly kind: AcceptKind; readonly length: number };
}

/** What becomes of `shown` when its document changes. */
export function follow(shown: Shown, edits: readonly Edit[]): Followed {
  const gone: Followed = { shown: undefined };
  const [edit] = edits;
  if (edit === undefined || edits.length > 1) return gone;
  const from = edit.offset - shown.start;
  if (from < 0 || from + edit.removed !== shown.consumed) return gone;
  const standing = shown.text.slice(0, from) + edit.text;
  const gained = standing.length - shown.consumed;
  if (gained <= 0 || standing.length >= shown.text.length || !shown.text.startsWith(standing)) return gone;
  const next = { ...shown, consumed: standing.length };
  if (gained === 1) return { shown: next };
  const toLineEnd = standing.endsWith("\n") || shown.text[standing.length] === "\n";
  return { shown: next, accepted: { kind: toLineEnd ? "line" : "word", length: standing.length } };
}

/** What is left of `shown` at this place, or undefined when it was made for another. Saves asking the model again. */
export function rest(shown: Shown | undefined, uri: string, offset: number): string | undefined {
  if (shown?.uri !== uri || offset !== shown.start + shown.consumed) return undefined;
  return shown.text.slice(shown.consumed);
}
