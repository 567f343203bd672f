/** The part of VS Code's CancellationToken that waiting needs. */
export interface Cancellation {
  readonly isCancellationRequested: boolean;
  onCancellationRequested(listener: () => void): { dispose(): void };
}

/** Waits `ms`; true when the time is over, false as soon as it was cancelled. VS Code cancels at the next key. */
export function pause(ms: number, token: Cancellation): Promise<boolean> {
  if (token.isCancellationRequested) return Promise.resolve(false);
  return new Promise((resolve) => {
    const end = (waited: boolean) => {
      clearTimeout(timer);
      listener.dispose();
      resolve(waited);
    };
    const timer = setTimeout(end, ms, true);
    const listener = token.onCancellationRequested(() => end(false));
  });
}
