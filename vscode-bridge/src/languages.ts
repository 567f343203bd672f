/** Whether to suggest in a language: among those to include (none named: all), and not among those to exclude. */
export function wanted(language: string, include: readonly string[], exclude: readonly string[]): boolean {
  return (include.length === 0 || include.includes(language)) && !exclude.includes(language);
}
