// Calls of the HTTP API. An answer that is not JSON, or none at all, is an error like any other.
import { signal } from '@preact/signals';

export const API = '/api/hindcast/v1';

// Under which name notes and changes are made, until there are users.
export const actor = signal(localStorage.getItem('actor') ?? '');
actor.subscribe((name) => localStorage.setItem('actor', name));

export class ApiError extends Error {
  constructor(
    readonly code: string,
    message: string,
  ) {
    super(message);
  }
}

async function call<T>(path: string, init?: RequestInit): Promise<T> {
  let response: Response;
  try {
    response = await fetch(API + path, init);
  } catch {
    throw new ApiError('network', '');
  }
  const body: unknown = await response.json().catch(() => null);
  if (response.ok && body !== null) return body as T;
  const said = (body ?? {}) as { code?: string; message?: string };
  throw new ApiError(said.code ?? 'internal', said.message ?? `HTTP ${response.status}`);
}

export const load = <T>(path: string): Promise<T> => call<T>(path);

// A change: the same request id on every try makes a repeat harmless, `version` tells what it is based on.
export function change<T>(path: string, body: object, version: number): Promise<T> {
  const headers: Record<string, string> = { 'content-type': 'application/json', 'if-match': `"${version}"` };
  if (actor.value.trim()) headers['x-hindcast-actor'] = encodeURIComponent(actor.value.trim());
  // `crypto.randomUUID` exists on secure origins only; this is for telling tries apart, not for secrets.
  const id = Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => b.toString(16).padStart(2, '0')).join('');
  const init = { method: 'POST', headers, body: JSON.stringify({ ...body, request_id: id }) };
  return call<T>(path, init).catch((error: unknown) => {
    const unclear = error instanceof ApiError && (error.code === 'network' || error.code === 'unconfirmed');
    if (unclear) return call<T>(path, init);
    throw error;
  });
}
