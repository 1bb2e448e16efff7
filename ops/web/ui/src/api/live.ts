// Data of a screen: loaded at once and again every few seconds while the page is seen. What was loaded stays on
// screen when the server does not answer; its age is told.
import { signal, type Signal } from '@preact/signals';
import { useEffect, useMemo } from 'preact/hooks';
import { ApiError, load } from './client';

const EVERY_MS = 4_000;

export interface Live<T> {
  data: Signal<T | undefined>;
  error: Signal<ApiError | undefined>;
  // When `data` was loaded.
  at: Signal<number>;
  reload: () => void;
  // A newer state that came as the answer to a change.
  put: (data: T) => void;
}

export function useLive<T>(path: string): Live<T> {
  const live = useMemo(() => start<T>(path), [path]);
  useEffect(() => {
    live.reload();
    const timer = setInterval(() => {
      if (!document.hidden) live.reload();
    }, EVERY_MS);
    return () => clearInterval(timer);
  }, [live]);
  return live;
}

function start<T>(path: string): Live<T> {
  const data = signal<T | undefined>(undefined);
  const error = signal<ApiError | undefined>(undefined);
  const at = signal(0);
  let asked = 0;
  const put = (value: T) => {
    // Answers that were asked for before are older.
    asked += 1;
    data.value = value;
    error.value = undefined;
    at.value = Date.now();
  };
  const reload = () => {
    const mine = ++asked;
    load<T>(path).then(
      (value) => {
        if (mine === asked) put(value);
      },
      (reason: unknown) => {
        if (mine === asked) error.value = reason instanceof ApiError ? reason : new ApiError('internal', String(reason));
      },
    );
  };
  return { data, error, at, reload, put };
}

// The present second, for ages and durations.
export const now = signal(Date.now());
setInterval(() => {
  if (!document.hidden) now.value = Date.now();
}, 1_000);
