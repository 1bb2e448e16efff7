// Small parts that screens are made of.
import type { ComponentChildren, JSX } from 'preact';
import { useState } from 'preact/hooks';
import { now, type Live } from '../api/live';
import type { ApiError } from '../api/client';
import { clock, say, word } from '../words';
import type { Key } from '../words/en';
import { duration, iso } from '../words/say';

// State glyphs: shape and colour together, so that neither alone has to carry the state.
const GLYPHS: Record<string, JSX.Element> = {
  critical: (
    <>
      <path d="M4.3.8h5.4l3.5 3.5v5.4l-3.5 3.5H4.3L.8 9.7V4.3z" fill="currentColor" />
      <path d="M7 3.4v4.4M7 9.4v1.4" stroke="var(--panel)" stroke-width="1.8" />
    </>
  ),
  major: (
    <>
      <path d="M7 .9 13.6 13H.4z" fill="currentColor" />
      <path d="M7 5v4M7 10.2v1.3" stroke="var(--panel)" stroke-width="1.6" />
    </>
  ),
  minor: (
    <>
      <circle cx="7" cy="7" r="5.4" fill="none" stroke="currentColor" stroke-width="1.7" />
      <path d="M7 6.3v4M7 3.7v1.5" stroke="currentColor" stroke-width="1.7" />
    </>
  ),
  ok: <path d="m2.6 7.4 2.9 2.9 5.9-6.2" fill="none" stroke="currentColor" stroke-width="1.9" />,
  nodata: (
    <>
      <circle cx="7" cy="7" r="5.4" fill="none" stroke="currentColor" stroke-width="1.5" stroke-dasharray="2.4 1.9" />
      <path d="M5.5 5.8c0-2 3-2 3 0 0 1.1-1.5 1.1-1.5 2.3M7 9.4v1" stroke="currentColor" stroke-width="1.3" fill="none" />
    </>
  ),
};

export function Glyph({ of }: { of: string }) {
  const name = of in GLYPHS ? of : 'nodata';
  return (
    <svg class={`glyph ${name}`} viewBox="0 0 14 14" role="img" aria-label={word('severity', name)}>
      {GLYPHS[name]}
    </svg>
  );
}

export function Pill({ tone, children }: { tone?: string; children: ComponentChildren }) {
  return <span class={`pill ${tone ?? ''}`}>{children}</span>;
}

const STATUS_TONES: Record<string, string> = { new: 'major', in_progress: 'accent', resolved: 'ok', pending: 'minor' };
export const StatusPill = ({ status }: { status: string }) => (
  <Pill tone={STATUS_TONES[status]}>{word('status', status)}</Pill>
);

const PRIORITY_TONES: Record<string, string> = { P1: 'critical', P2: 'major' };
export const PriorityPill = ({ priority }: { priority: string }) => (
  <Pill tone={PRIORITY_TONES[priority]}>{priority}</Pill>
);

const STATE_TONES: Record<string, string> = { open: 'critical', recovered: 'ok', gave_up: 'critical', refused: 'critical', delivered: 'ok' };
export const StatePill = ({ state }: { state: string }) => <Pill tone={STATE_TONES[state]}>{word('state', state)}</Pill>;

export function Time({ ms }: { ms: number }) {
  const title = iso(ms);
  return (
    <time dateTime={title} title={title} class="num">
      {clock(ms, now.value)}
    </time>
  );
}

export const Lasts = ({ from, to }: { from: number; to: number | null | undefined }) => (
  <span class="num">{duration((to || now.value) - from)}</span>
);

export function Facts({ children }: { children: ComponentChildren }) {
  return <dl class="facts">{children}</dl>;
}

export function Fact({ name, children }: { name: Key; children: ComponentChildren }) {
  return (
    <div>
      <dt>{say(name)}</dt>
      <dd>{children}</dd>
    </div>
  );
}

const ERROR_KEYS = new Set([
  'invalid', 'too_large', 'not_found', 'busy', 'unconfirmed', 'unavailable', 'conflict', 'internal', 'network',
]);
export function errorText(error: ApiError): string {
  const head = say(`error.${ERROR_KEYS.has(error.code) ? error.code : 'internal'}` as Key);
  return error.message ? `${head}: ${error.message}` : head;
}

export function Notice({ tone, children }: { tone?: string; children: ComponentChildren }) {
  return (
    <div class={`notice ${tone ?? ''}`} role="status">
      {children}
    </div>
  );
}

// The three states of loaded data: nothing yet, nothing at all, something (perhaps of a while ago).
export function Loaded<T>({ live, children }: { live: Live<T>; children: (data: T) => ComponentChildren }) {
  const [data, error] = [live.data.value, live.error.value];
  if (data === undefined && !error) return <p class="quiet">{say('load.loading')}</p>;
  if (data === undefined && error) {
    return (
      <div class="empty" role="alert">
        <h2>{say('load.failed')}</h2>
        <p>{errorText(error)}</p>
        <button class="button" onClick={live.reload}>
          {say('load.retry')}
        </button>
      </div>
    );
  }
  return (
    <>
      {error && <Notice tone="major">{say('load.old', { age: duration(now.value - live.at.value) })}</Notice>}
      {children(data as T)}
    </>
  );
}

export function Empty({ what, hint }: { what: Key; hint?: Key }) {
  return (
    <div class="empty">
      <h2>{say(what)}</h2>
      {hint && <p>{say(hint)}</p>}
    </div>
  );
}

// Which rows: the open ones or all. A link, so that the URL tells.
export function ShowFilter({ base, all }: { base: string; all: boolean }) {
  return (
    <nav class="filter" aria-label={say(all ? 'filter.all' : 'filter.open')}>
      <a href={base} aria-current={all ? undefined : 'page'}>
        {say('filter.open')}
      </a>
      <a href={`${base}?show=all`} aria-current={all ? 'page' : undefined}>
        {say('filter.all')}
      </a>
    </nav>
  );
}

export function CopyLine({ text }: { text: string }) {
  const [copied, setCopied] = useState(false);
  const copy = () => {
    navigator.clipboard?.writeText(text).then(() => {
      setCopied(true);
      setTimeout(() => setCopied(false), 2_000);
    });
  };
  return (
    <div class="copy">
      <code>{text}</code>
      {navigator.clipboard && (
        <button class="button" onClick={copy}>
          {say(copied ? 'replay.copied' : 'replay.copy')}
        </button>
      )}
    </div>
  );
}
