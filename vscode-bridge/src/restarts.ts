/** Whether a server that stops is started again: a crash now and then is survived, one that cannot run is left alone. */
export class Restarts {
  static readonly most = 3;
  static readonly withinMs = 60_000;

  private times: number[] = [];

  /** Whether to start it again at `now` (milliseconds). */
  allow(now: number): boolean {
    this.times = this.times.filter((time) => now - time < Restarts.withinMs);
    if (this.times.length >= Restarts.most) return false;
    this.times.push(now);
    return true;
  }
}
