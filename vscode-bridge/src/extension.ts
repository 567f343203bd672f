import { window, workspace, type ExtensionContext } from "vscode";
import { register } from "./commands";
import { Completions } from "./completions";
import { Server } from "./server";
import { StatusItem } from "./statusItem";

let stop: (() => Promise<void>) | undefined;

export function activate(context: ExtensionContext): void {
  const output = window.createOutputChannel("codemem", { log: true });
  const status = new StatusItem();
  const completions = new Completions(status, (method, params) => server.notify(method, params));
  const server = new Server(output, status, { provideInlineCompletionItems: completions.provide });
  const settings = workspace.onDidChangeConfiguration((event) => {
    if (event.affectsConfiguration("codemem.enabled") || event.affectsConfiguration("codemem.command")) {
      void server.restart();
    }
  });
  const commands = register({ server, status, completions, output });
  context.subscriptions.push(output, status, completions, settings, ...commands);
  stop = () => server.stop();
  void server.restart();
}

export function deactivate(): Promise<void> | undefined {
  return stop?.();
}
