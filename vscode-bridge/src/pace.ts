/** Whether answers come too late to be useful: the median of the last few, so that one slow answer says nothing. */
export class Pace {
  static readonly window = 5;
  static readonly slowMs = 2000;

  private readonly times: number[] = [];

  /** Also for requests given up before their answer: that they were slow is why they were given up. */
  record(ms: number): void {
    this.times.push(ms);
    if (this.times.length > Pace.window) this.times.shift();
  }

  /** Milliseconds, or undefined before there are enough answers to say. */
  get median(): number | undefined {
    if (this.times.length < Pace.window) return undefined;
    return this.times.toSorted((a, b) => a - b)[Math.floor(Pace.window / 2)];
  }

  get slow(): boolean {
    return (this.median ?? 0) > Pace.slowMs;
  }
}
