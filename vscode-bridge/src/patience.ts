import type { Cancellation } from "./debounce";

/**
 * Gives up a question late. VS Code does at every key, but who types on asks again a moment later, and then the daemon
 * knows better whether what it is writing is still wanted.
 */
export class Patience {
  static readonly ms = 400;

  private readonly newest = new Map<string, number>();

  /**
   * Calls `giveUp` a while after `token` was cancelled, unless something newer is asked in `document` by then. Call what
   * it returns when the answer is there.
   */
  hold(document: string, token: Cancellation, giveUp: () => void): () => void {
    const number = (this.newest.get(document) ?? 0) + 1;
    this.newest.set(document, number);
    let timer: ReturnType<typeof setTimeout> | undefined;
    const listener = token.onCancellationRequested(() => {
      timer = setTimeout(() => this.newest.get(document) === number && giveUp(), Patience.ms);
    });
    return () => {
      clearTimeout(timer);
      listener.dispose();
    };
  }
}
