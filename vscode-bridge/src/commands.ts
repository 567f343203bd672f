import {
  CancellationError,
  ConfigurationTarget,
  Position,
  ProgressLocation,
  QuickPickItemKind,
  Range,
  Uri,
  commands,
  window,
  workspace,
  type LogOutputChannel,
  type QuickPickItem,
} from "vscode";
import { WorkDoneProgress } from "vscode-languageclient/node";
import type { Completions } from "./completions";
import { rows, summary, type Row } from "./explain";
import { requestFailure } from "./failure";
import type { Explanation, Indexed } from "./protocol";
import type { Server } from "./server";
import { count, describe, look } from "./status";
import type { StatusItem } from "./statusItem";

interface Parts {
  readonly server: Server;
  readonly status: StatusItem;
  readonly completions: Completions;
  readonly output: LogOutputChannel;
}

/** The commands of the palette. What a person asked for by name may answer with a message. */
export function register({ server, status, completions, output }: Parts) {
  const run = (name: string, command: (...given: never[]) => unknown) =>
    commands.registerCommand(`codemem.${name}`, command);
  return [
    run("suggest", () => commands.executeCommand("editor.action.inlineSuggest.trigger")),
    run("explain", () => told(() => explain(server, completions))),
    run("index", () => told(() => index(server))),
    run("showStatus", () => showStatus(status)),
    run("toggle", toggle),
    run("restart", () => server.restart()),
    run("showOutput", () => output.show()),
    // Not in the palette: every completion carries it, and VS Code runs it when all of the completion was accepted.
    run("didAccept", completions.accepted.bind(completions)),
  ];
}

async function explain(server: Server, completions: Completions): Promise<void> {
  if (completions.latest === undefined) throw new Error("No suggestion has been shown yet.");
  const explanation = await client(server).sendRequest<Explanation>("codemem/explain", { id: completions.latest });
  const items = rows(explanation).map((row) => ({ ...row, ...(row.place ? {} : separator) }));
  const title = summary(explanation);
  const placeHolder = items.length > 0 ? "Choose one to open it" : "Memory gave nothing to this suggestion";
  const chosen = await window.showQuickPick<QuickPickItem & Row>(items, { title, placeHolder, matchOnDetail: true });
  if (!chosen?.place) return;
  const at = new Position(chosen.place.line, chosen.place.column);
  await window.showTextDocument(Uri.parse(chosen.place.uri), { selection: new Range(at, at) });
}

async function index(server: Server): Promise<void> {
  const document = window.activeTextEditor?.document.uri;
  const folder = (document && workspace.getWorkspaceFolder(document)) ?? workspace.workspaceFolders?.[0];
  if (!folder) throw new Error("Open a folder first.");
  const running = client(server);
  const options = { location: ProgressLocation.Notification, title: `Indexing ${folder.name}`, cancellable: true };
  const done = await window.withProgress(options, async (progress, token) => {
    const workDoneToken = `codemem-index-${Date.now()}`;
    let reached = 0;
    const listener = running.onProgress(WorkDoneProgress.type, workDoneToken, (said) => {
      if (said.kind === "end") return;
      const percent = said.percentage ?? reached;
      progress.report({ increment: percent - reached, ...(said.message ? { message: said.message } : {}) });
      reached = percent;
    });
    try {
      return await running.sendRequest<Indexed>("codemem/index", { uri: folder.uri.toString(), workDoneToken }, token);
    } finally {
      listener.dispose();
    }
  });
  const size = `${count(done.documents, "document")}, ${count(done.entries, "entry", "entries")}`;
  void window.showInformationMessage(`codemem: memory of ${folder.name} has ${size}; ${done.seconds.toFixed(1)} s.`);
}

async function showStatus(status: StatusItem): Promise<void> {
  const now = status.circumstances;
  const folders = now.status?.folders ?? [];
  const actions = [
    { label: now.enabled ? "Turn suggestions off" : "Turn suggestions on", command: "codemem.toggle" },
    { label: "Index this repository", command: "codemem.index" },
    { label: "Why this suggestion", command: "codemem.explain" },
    { label: "Restart", command: "codemem.restart" },
    { label: "Show output", command: "codemem.showOutput" },
  ];
  const memories = folders.map((folder) => ({
    label: `${Uri.parse(folder.uri).path.split("/").at(-1)}: ${folder.state}`,
    detail: describe(folder),
  }));
  const items: (QuickPickItem & { command?: string })[] = [...memories, { label: "", ...separator }, ...actions];
  const { version, model, pid } = now.status ?? {};
  const title = now.status ? `codemem ${version}, ${model}, process ${pid}` : "codemem";
  const [placeHolder = ""] = look(now).tooltip.split("\n");
  const chosen = await window.showQuickPick(items, { title, placeHolder });
  if (chosen?.command) await commands.executeCommand(chosen.command);
}

/** Changes the setting where it is in force, so that the command always has an effect. */
async function toggle(): Promise<void> {
  const settings = workspace.getConfiguration("codemem");
  const here = settings.inspect("enabled")?.workspaceValue !== undefined;
  const target = here ? ConfigurationTarget.Workspace : ConfigurationTarget.Global;
  await settings.update("enabled", !settings.get("enabled", true), target);
}

const separator = { kind: QuickPickItemKind.Separator } as const;

function client(server: Server) {
  if (!server.running) throw new Error("codemem is not running: see its item in the status bar.");
  return server.running;
}

async function told(command: () => Promise<void>): Promise<void> {
  try {
    await command();
  } catch (error) {
    if (error instanceof CancellationError) return;
    const { message, hint } = requestFailure(error);
    void window.showErrorMessage(`codemem: ${message}${hint ? ` (${hint})` : ""}`);
  }
}
