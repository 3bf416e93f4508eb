/** Errors of the API in words that say what to do. */

import { t, type TextKey } from "../text";

export class ApiFailure extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly traceId = "",
  ) {
    super(message);
  }
}

const BY_CODE = new Map<string, TextKey>([
  ["context_length_exceeded", "errorContext"],
  ["engine_unavailable", "errorNoEngine"],
  ["model_loading", "errorLoading"],
  ["overloaded", "errorBusy"],
  ["rate_limit_exceeded", "errorRate"],
  ["model_not_found", "errorModel"],
  ["model_not_allowed", "errorModelKey"],
  ["invalid_api_key", "errorKey"],
]);

/** The failure that a response of an error status stands for. */
export async function failureOf(response: Response): Promise<ApiFailure> {
  let message = response.statusText;
  let code = "";
  try {
    const body = (await response.json()) as { error?: { message?: string; code?: string | null } };
    message = body.error?.message ?? message;
    code = body.error?.code ?? "";
  } catch {
    // Something in between answered, not the gateway.
  }
  return new ApiFailure(response.status, code, message, response.headers.get("x-trace-id") ?? "");
}

/** A sentence for people; what the server said follows where it adds something. */
export function inPlainWords(error: unknown): string {
  if (error instanceof ApiFailure) {
    const key = BY_CODE.get(error.code) ?? (error.status === 401 ? "errorKey" : undefined);
    if (key === undefined) return error.message || t("errorStatus", { status: error.status });
    const plain = t(key);
    return error.code === "context_length_exceeded" || error.code === "rate_limit_exceeded"
      ? `${plain} ${error.message}`
      : plain;
  }
  if (error instanceof TypeError) return t("errorUnreachable");
  return error instanceof Error ? error.message : String(error);
}
