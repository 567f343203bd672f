import type { Failure } from "./protocol";

/** A failed request as the status item shows it. Errors of the daemon carry a hint in their data. */
export function requestFailure(error: unknown): Failure {
  const message = error instanceof Error ? error.message : String(error);
  const data = (error as { data?: { hint?: unknown } } | undefined)?.data;
  return typeof data?.hint === "string" ? { message, hint: data.hint } : { message };
}

/** Why the server does not run. */
export function startFailure(command: string, error: unknown): Failure {
  const { message } = requestFailure(error);
  if (message.includes("ENOENT")) {
    return { message: `there is no program "${command}"`, hint: "Set codemem.command to where codemem is installed." };
  }
  return { message: `"${command} lsp" does not start: ${message}`, hint: "The output channel says more." };
}
