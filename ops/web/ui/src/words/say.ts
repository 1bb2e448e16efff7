// Pure: text, times and durations in a language. No DOM.
import { en, type Key, type Words } from './en';
import { ko } from './ko';

export type Lang = 'en' | 'ko';
export const languages: Record<Lang, Words> = { en, ko };

export function fill(text: string, values: Record<string, string | number> = {}): string {
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

export function sayIn(lang: Lang, key: Key, values?: Record<string, string | number>): string {
  return fill(languages[lang][key], values);
}

// A word of the server (`status.new`), or the word itself when the UI is older than the server.
export function wordIn(lang: Lang, group: string, word: string | null | undefined): string {
  if (!word) return '–';
  const key = `${group}.${word}`;
  return key in languages[lang] ? languages[lang][key as Key] : word.replaceAll('_', ' ');
}

// `17m 46s`: the two largest units.
export function duration(ms: number): string {
  const s = Math.max(0, Math.floor(ms / 1000));
  const units: [number, string][] = [
    [86_400, 'd'],
    [3_600, 'h'],
    [60, 'm'],
    [1, 's'],
  ];
  const first = units.findIndex(([len]) => s >= len);
  if (first < 0) return '0s';
  const [big, bigName] = units[first]!;
  const next = units[first + 1];
  if (!next) return `${s}s`;
  const rest = Math.floor((s % big) / next[0]);
  const lead = `${Math.floor(s / big)}${bigName}`;
  return rest === 0 ? lead : `${lead} ${String(rest).padStart(2, '0')}${next[1]}`;
}

// Clock time today, date and clock time else, in the viewer's zone.
export function clock(lang: Lang, ms: number, now: number, zone?: string): string {
  const day = (t: number) => new Intl.DateTimeFormat('en-CA', { dateStyle: 'short', timeZone: zone }).format(t);
  const two = '2-digit';
  const parts = { hour: two, minute: two, second: two, hourCycle: 'h23', timeZone: zone } as const;
  // The same digits in every language; only the date is in words.
  const time = new Intl.DateTimeFormat('en-GB', parts).format(ms);
  if (day(ms) === day(now)) return time;
  const date = new Intl.DateTimeFormat(lang, { month: 'short', day: 'numeric', timeZone: zone }).format(ms);
  return `${date} ${time}`;
}

// ISO 8601 with the viewer's offset, for titles of times.
export function iso(ms: number): string {
  const offset = -new Date(ms).getTimezoneOffset();
  const sign = offset < 0 ? '-' : '+';
  const two = (n: number) => String(Math.abs(n)).padStart(2, '0');
  const local = new Date(ms + offset * 60_000).toISOString().slice(0, 23);
  return `${local}${sign}${two(Math.trunc(offset / 60))}:${two(offset % 60)}`;
}
