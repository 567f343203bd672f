/** VS Code's CancellationTokenSource, as far as waiting needs it. */
export class Source {
  isCancellationRequested = false;
  listeners = new Set<() => void>();
  onCancellationRequested = (listener: () => void) => {
    this.listeners.add(listener);
    return { dispose: () => void this.listeners.delete(listener) };
  };
  cancel() {
    this.isCancellationRequested = true;
    for (const listener of [...this.listeners]) listener();
  }
}
