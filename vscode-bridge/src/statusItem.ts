import { StatusBarAlignment, ThemeColor, window, type Disposable } from "vscode";
import { look, type Circumstances } from "./status";

const colors = { plain: undefined, warning: "statusBarItem.warningBackground", error: "statusBarItem.errorBackground" };

/** The item in the status bar: where states and errors are told, so that no message pops up while typing. */
export class StatusItem implements Disposable {
  private readonly item = window.createStatusBarItem("codemem", StatusBarAlignment.Right, 100);
  private readonly editors = window.onDidChangeActiveTextEditor(() => this.update({}));
  private known: Circumstances = { enabled: true, running: false };

  constructor() {
    this.item.name = "codemem";
    this.item.command = "codemem.showStatus";
    this.update({});
    this.item.show();
  }

  get circumstances(): Circumstances {
    return this.known;
  }

  update(news: Partial<Circumstances>): void {
    this.known = { ...this.known, document: window.activeTextEditor?.document.uri.toString(), ...news };
    const { text, tooltip, level } = look(this.known);
    const color = colors[level];
    this.item.text = text;
    this.item.tooltip = tooltip;
    this.item.backgroundColor = color === undefined ? undefined : new ThemeColor(color);
  }

  dispose(): void {
    this.editors.dispose();
    this.item.dispose();
  }
}
