// A language server that answers what a test wants, and records what it hears: `node fake-server.ts SCRIPT LOG lsp`.
// SCRIPT is a JSON file, read at each request, so that a test can change the answer. LOG gets a line per message.
import { appendFileSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import {
  ResponseError,
  StreamMessageReader,
  StreamMessageWriter,
  createMessageConnection,
  type CancellationToken,
} from "vscode-jsonrpc/node";

export interface Script {
  /** What every completion says; null answers null. */
  text: string | null;
  delayMs?: number;
  /** Fails every completion. */
  error?: { message: string; hint: string };
  /** Ends the process at a completion, and whenever it is started. */
  dies?: boolean;
  /** What `codemem/status` and `codemem/explain` answer. */
  status: object;
  explanation?: object;
}

const [scriptFile, log] = process.argv.slice(2);
const script = (): Script => JSON.parse(readFileSync(scriptFile, "utf8"));
const record = (method: string, params: unknown) => appendFileSync(log, `${JSON.stringify({ method, params })}\n`);

const connection = createMessageConnection(
  new StreamMessageReader(process.stdin),
  new StreamMessageWriter(process.stdout),
);
let completions = 0;

connection.onRequest("initialize", (params: object) => {
  record("initialize", params);
  if (script().dies) process.exit(1);
  return {
    capabilities: {
      positionEncoding: "utf-16",
      textDocumentSync: { openClose: true, change: 2, save: true },
      inlineCompletionProvider: {},
      workspace: { workspaceFolders: { supported: true, changeNotifications: true } },
    },
    serverInfo: { name: "codemem", version: "fake" },
  };
});

async function complete(params: { position: object }, token: CancellationToken): Promise<object | null> {
  record("textDocument/inlineCompletion", params);
  token.onCancellationRequested(() => record("cancelled", {}));
  const { text, delayMs, error, dies } = script();
  if (dies) process.exit(1);
  if (delayMs !== undefined) await sleep(delayMs);
  if (token.isCancellationRequested) throw new ResponseError(-32800, "cancelled");
  if (error) throw new ResponseError(-32603, error.message, { hint: error.hint });
  if (text === null) return null;
  const id = `fake-${++completions}`;
  const command = { title: "codemem: accepted", command: "codemem.didAccept", arguments: [id] };
  return { items: [{ insertText: text, range: { start: params.position, end: params.position }, command }] };
}

connection.onRequest("textDocument/inlineCompletion", complete);

connection.onRequest("codemem/explain", ({ id }: { id: string }) => ({ id, ...script().explanation }));
connection.onRequest("codemem/status", () => script().status);
connection.onRequest("shutdown", () => null);
connection.onNotification("exit", () => process.exit(0));
connection.onNotification(record);
connection.onClose(() => process.exit(0));
connection.listen();
