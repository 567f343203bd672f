// A real VS Code workbench: code-server, with the extension installed, in a headless Chromium.
import assert from "node:assert/strict";
import { execFile, spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync } from "node:fs";
import { mkdir, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { chromium, type Browser, type Page } from "playwright-core";
import { until } from "./until.ts";

const entry = join(process.env.CODEMEM_E2E_CACHE!, "code-server/node_modules/code-server/out/node/entry.js");
const vsix = resolve(import.meta.dirname, "../../vscode-bridge/codemem.vsix");

/** Milliseconds for what starts, on a machine that is busy with other things too. */
const patience = 120_000;

const flags = [
  "--no-sandbox", // root may not use it
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

export interface Options {
  /** The folder to open, and the file in it. */
  folder: string;
  file: string;
  /** Setting `codemem.command`. */
  command: string;
  settings?: object;
  /** Asks whether to trust the folder, as VS Code does. */
  askForTrust?: boolean;
}

const quiet = {
  "editor.quickSuggestions": { other: "off", comments: "off", strings: "off" },
  "editor.wordBasedSuggestions": "off",
  "workbench.startupEditor": "none",
  "workbench.colorTheme": "Default Light Modern",
  "workbench.secondarySideBar.defaultVisibility": "hidden",
  "chat.disableAIFeatures": true,
  "telemetry.telemetryLevel": "off",
  "window.menuBarVisibility": "hidden",
  "workbench.reduceMotion": "on",
};

/** VS Code gives this command no key. */
const keys = [{ key: "ctrl+alt+right", command: "editor.action.inlineSuggest.acceptNextLine" }];

export class Workbench {
  private browser: Browser | undefined;
  private server: ChildProcess | undefined;
  private openPage: Page | undefined;
  private readonly home = mkdtempSync(join(tmpdir(), "codemem-vscode-"));

  static async open(options: Options): Promise<Workbench> {
    const workbench = new Workbench();
    try {
      await workbench.start(options);
    } catch (error) {
      await workbench.close();
      throw error;
    }
    return workbench;
  }

  private async start({ folder, file, command, settings, askForTrust }: Options): Promise<void> {
    for (const place of ["User", "Machine"]) {
      await mkdir(join(this.home, "data", place), { recursive: true });
      const all = { ...quiet, "codemem.command": command, ...settings };
      await writeFile(join(this.home, "data", place, "settings.json"), JSON.stringify(all));
    }
    await writeFile(join(this.home, "data/User/keybindings.json"), JSON.stringify(keys));
    await writeFile(join(this.home, "config.yaml"), "");
    const args = [entry, "--config", join(this.home, "config.yaml")];
    args.push("--user-data-dir", join(this.home, "data"), "--extensions-dir", join(this.home, "extensions"));
    const env = { ...process.env, EXTENSIONS_GALLERY: '{"serviceUrl":""}' };
    await promisify(execFile)(process.execPath, [...args, "--install-extension", vsix], { env });

    const port = await freePort();
    args.push("--auth", "none", "--bind-addr", `127.0.0.1:${port}`);
    args.push("--disable-telemetry", "--disable-update-check", "--disable-getting-started-override");
    if (!askForTrust) args.push("--disable-workspace-trust");
    this.server = spawn(process.execPath, args, { env, stdio: "ignore" });
    await until(async () => (await fetch(`http://127.0.0.1:${port}/healthz`)).ok, "code-server to answer", patience);

    this.browser = await chromium.launch({
      executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
      args: flags,
      timeout: patience,
    });
    this.openPage = await this.browser.newPage({ viewport: { width: 960, height: 540 } });
    this.page.setDefaultTimeout(patience);
    const payload = encodeURIComponent(JSON.stringify([["openFile", `vscode-remote://127.0.0.1:${port}${file}`]]));
    await this.page.goto(`http://127.0.0.1:${port}/?folder=${folder}&payload=${payload}`, { waitUntil: "commit" });
  }

  get page(): Page {
    assert.ok(this.openPage, "the workbench is open");
    return this.openPage;
  }

  /** Puts the cursor behind the last character of the file. */
  async toTheEnd(): Promise<void> {
    await this.page.locator(".monaco-editor .view-lines").first().click();
    await this.page.keyboard.press("Control+End");
  }

  /** Brings an open file to the front. */
  async front(file: string): Promise<void> {
    await this.page.locator(`.tab[data-resource-name="${file}"]`).click();
    await this.untilPlace(file, "Ln ");
  }

  /** Types as a person does, so that the editor closes brackets and asks for completions. */
  async type(text: string): Promise<void> {
    await this.page.keyboard.type(text, { delay: 25 });
  }

  /** The ghost text behind the cursor; VS Code splits it into spans. Empty when there is none. */
  async ghost(): Promise<string> {
    const parts = await this.page.locator(".ghost-text-decoration").allTextContents();
    return parts.join("").replaceAll("\u00a0", " ");
  }

  async status(): Promise<string> {
    return (await this.page.locator('[id="codemem.codemem.codemem"]').innerText()).trim();
  }

  async untilStatus(wanted: string, ms = patience): Promise<void> {
    await until(async () => (await this.status()) === wanted, `status "${wanted}"`, ms, () => this.status());
  }

  async run(command: string): Promise<void> {
    await this.page.keyboard.press("F1");
    await this.page.locator(".quick-input-widget input").first().fill(`>${command}`);
    // Enter runs what is in focus, which is another command until the list has followed.
    await this.page.locator(".quick-input-list .monaco-list-row.focused").filter({ hasText: command }).waitFor();
    await this.page.keyboard.press("Enter");
  }

  /** Labels of the open list, without headings and details. */
  async rows(): Promise<string[]> {
    const labels = this.page.locator(".quick-input-list-row:not(.quick-input-list-label-meta) .label-name");
    return (await labels.allInnerTexts()).map((label) => label.replaceAll("\u00a0", " ").trim());
  }

  /** Waits until a file is in front, with the cursor at a position such as "Ln 3, Col 5", or any that starts so. */
  async untilPlace(file: string, position: string): Promise<void> {
    const place = async () => [
      await this.page.locator(".tab.active").first().getAttribute("data-resource-name"),
      (await this.page.locator('[id="status.editor.selection"]').innerText()).trim(),
    ];
    const there = async () => {
      const [name, at] = await place();
      return name === file && Boolean(at?.startsWith(position));
    };
    await until(there, `${file} at ${position}`, 30_000, place);
  }

  async toasts(): Promise<string[]> {
    return this.page.locator(".notification-toast .notification-list-item-message").allInnerTexts();
  }

  /** Saves a picture, where CODEMEM_E2E_IMAGES names a directory. */
  async picture(name: string, clip?: { x: number; y: number; width: number; height: number }): Promise<void> {
    const directory = process.env.CODEMEM_E2E_IMAGES;
    if (directory) await this.page.screenshot({ path: join(directory, `${name}.png`), ...(clip ? { clip } : {}) });
  }

  async close(): Promise<void> {
    await this.browser?.close();
    if (this.server?.kill()) await once(this.server, "exit");
    await rm(this.home, { recursive: true, force: true, maxRetries: 5, retryDelay: 200 });
  }
}

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer().listen(0, "127.0.0.1", () => {
      const address = server.address();
      server.close(() => resolve(typeof address === "object" && address ? address.port : 0));
    });
  });
}
