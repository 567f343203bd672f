import {
  CancellationError,
  CancellationTokenSource,
  InlineCompletionItem,
  InlineCompletionTriggerKind,
  Range,
  workspace,
  type Disposable,
  type Position,
  type TextDocument,
  type TextDocumentChangeEvent,
} from "vscode";
import type { Middleware } from "vscode-languageclient/node";
import { pause } from "./debounce";
import { requestFailure } from "./failure";
import { wanted } from "./languages";
import { Pace } from "./pace";
import { Patience } from "./patience";
import type { AcceptKind } from "./protocol";
import { follow, rest, type Shown } from "./shown";
import type { StatusItem } from "./statusItem";

type Provide = NonNullable<Middleware["provideInlineCompletionItems"]>;

/** Stands between VS Code and the language client: when to ask the daemon, and what became of its answers. */
export class Completions implements Disposable {
  private readonly changes = workspace.onDidChangeTextDocument((event) => this.follow(event));
  private readonly pace = new Pace();
  private readonly patience = new Patience();
  private shown: Shown | undefined;

  /** The completion that "why this suggestion" is about: shown or accepted last. */
  latest: string | undefined;

  constructor(
    private readonly status: StatusItem,
    private readonly notify: (method: string, params: object) => void,
  ) {}

  readonly provide: Provide = async (document, position, context, token, next) => {
    if (!serves(document)) return null;
    const byHand = context.triggerKind === InlineCompletionTriggerKind.Invoke;
    if (!byHand) {
      const left = rest(this.shown, document.uri.toString(), document.offsetAt(position));
      if (this.shown && left !== undefined) return [item(this.shown, left, document, position)];
      const debounce = workspace.getConfiguration("codemem", document).get("debounce", 75);
      if (!(await pause(debounce, token))) return null;
    }
    const asked = performance.now();
    const question = new CancellationTokenSource();
    const answered = this.patience.hold(document.uri.toString(), token, () => question.cancel());
    try {
      const answer = await next(document, position, context, question.token);
      this.status.update({ failure: undefined });
      const [first] = Array.isArray(answer) ? answer : (answer?.items ?? []);
      return first && !token.isCancellationRequested ? [this.show(first, document, position)] : null;
    } catch (error) {
      // The daemon gives up a request when a newer one comes: that is not an error.
      if (!(error instanceof CancellationError)) this.status.update({ failure: requestFailure(error) });
      return null;
    } finally {
      answered();
      question.dispose();
      this.pace.record(performance.now() - asked);
      this.status.update({ slowMs: this.pace.slow ? this.pace.median : undefined });
    }
  };

  accepted(id: string, kind: AcceptKind, length: number): void {
    this.latest = id;
    this.notify("codemem/didAccept", { id, kind, length });
  }

  dispose(): void {
    this.changes.dispose();
  }

  private show(given: InlineCompletionItem, document: TextDocument, position: Position): InlineCompletionItem {
    const id: unknown = given.command?.arguments?.[0];
    const text = given.insertText;
    if (typeof id !== "string" || typeof text !== "string") return given;
    const start = document.offsetAt(position);
    const replaces = given.range ? document.offsetAt(given.range.end) - start : 0;
    this.shown = { id, uri: document.uri.toString(), start, text, replaces, consumed: 0 };
    this.latest = id;
    this.notify("codemem/didShow", { id });
    return item(this.shown, text, document, position);
  }

  private follow({ document, contentChanges }: TextDocumentChangeEvent): void {
    if (this.shown?.uri !== document.uri.toString() || contentChanges.length === 0) return;
    const { id } = this.shown;
    const edits = contentChanges.map(({ rangeOffset, rangeLength, text }) => ({
      offset: rangeOffset,
      removed: rangeLength,
      text,
    }));
    const { shown, accepted } = follow(this.shown, edits);
    this.shown = shown;
    if (accepted) this.accepted(id, accepted.kind, accepted.length);
  }
}

/** The daemon reads what is in the workspace's folders, and refuses all else. */
function serves(document: TextDocument): boolean {
  if (document.uri.scheme !== "file" || !workspace.getWorkspaceFolder(document.uri)) return false;
  const languages = workspace.getConfiguration("codemem.languages", document);
  return wanted(document.languageId, languages.get("include", []), languages.get("exclude", []));
}

/** `text` is what is left of the completion at `position`. The command tells that all of it was accepted. */
function item({ id, text: whole, replaces }: Shown, text: string, document: TextDocument, position: Position) {
  const end = document.positionAt(document.offsetAt(position) + replaces);
  const command = { title: "codemem: accepted", command: "codemem.didAccept", arguments: [id, "all", whole.length] };
  return new InlineCompletionItem(text, new Range(position, end), command);
}
