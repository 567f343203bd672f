import { Uri, workspace, type LogOutputChannel } from "vscode";
import {
  CloseAction,
  ErrorAction,
  LanguageClient,
  RevealOutputChannelOn,
  State,
  type InitializeParams,
  type Middleware,
} from "vscode-languageclient/node";
import { startFailure } from "./failure";
import type { Status } from "./protocol";
import { Restarts } from "./restarts";
import type { StatusItem } from "./statusItem";

/** The language client pops up a message for what goes wrong with its server; the status item tells it instead. */
class QuietClient extends LanguageClient {
  /** The status item shows progress too; a second item beside it would say the same. */
  protected override fillInitializeParams(params: InitializeParams): void {
    super.fillInitializeParams(params);
    params.capabilities.window = { ...params.capabilities.window, workDoneProgress: false };
  }

  override error(message: string, data?: unknown): void {
    super.error(message, data, false);
  }
}

/** `codemem lsp`, which passes on to the daemon and starts it when needed. */
export class Server {
  private client: LanguageClient | undefined;
  private turn = Promise.resolve();

  constructor(
    private readonly output: LogOutputChannel,
    private readonly status: StatusItem,
    private readonly middleware: Middleware,
  ) {}

  /** Starts or stops as the settings say. Turns follow one another: settings may change while a server starts. */
  restart(): Promise<void> {
    this.turn = this.turn.then(async () => {
      await this.stopNow();
      const settings = workspace.getConfiguration("codemem");
      const enabled = settings.get("enabled", true);
      this.status.update({ enabled, running: false, failure: undefined, status: undefined, slowMs: undefined });
      if (enabled) await this.startNow(settings.get("command", "codemem"));
    });
    return this.turn;
  }

  stop(): Promise<void> {
    this.turn = this.turn.then(() => this.stopNow());
    return this.turn;
  }

  notify(method: string, params: object): void {
    if (this.client?.state === State.Running) void this.client.sendNotification(method, params);
  }

  /** The client, for requests; undefined while the server does not run. */
  get running(): LanguageClient | undefined {
    return this.client?.state === State.Running ? this.client : undefined;
  }

  private async startNow(command: string): Promise<void> {
    const restarts = new Restarts();
    const client = new QuietClient(
      "codemem",
      "codemem",
      { command, args: ["lsp"] },
      {
        documentSelector: [{ scheme: "file" }],
        outputChannel: this.output,
        traceOutputChannel: this.output,
        revealOutputChannelOn: RevealOutputChannelOn.Never,
        initializationFailedHandler: () => false,
        middleware: this.middleware,
        errorHandler: {
          error: () => ({ action: ErrorAction.Continue, handled: true }),
          closed: () => {
            if (restarts.allow(Date.now())) return { action: CloseAction.Restart, handled: true };
            this.status.update({
              failure: { message: `"${command} lsp" keeps stopping`, hint: 'See the output, then "codemem: Restart".' },
            });
            return { action: CloseAction.DoNotRestart, handled: true };
          },
        },
      },
    );
    this.client = client;
    client.onNotification("codemem/statusChanged", (status: Status) => this.learn(status));
    client.onDidChangeState(({ newState }) => {
      if (newState === State.Running) this.status.update({ running: true, failure: undefined });
      else if (this.client === client) this.status.update({ running: false });
    });
    try {
      await client.start();
      this.learn(await client.sendRequest<Status>("codemem/status", {}));
    } catch (error) {
      this.status.update({ failure: startFailure(command, error) });
    }
  }

  private async stopNow(): Promise<void> {
    const client = this.client;
    this.client = undefined;
    // A client that never came up refuses to stop; there is nothing to stop then.
    await client?.dispose().catch(() => undefined);
  }

  private learn(status: Status): void {
    // Two spellings of one URI must compare equal: both go through VS Code's.
    const folders = status.folders.map((folder) => ({ ...folder, uri: Uri.parse(folder.uri).toString() }));
    this.status.update({ status: { ...status, folders } });
  }
}
