// The language in use, as a signal: every text follows it.
import { signal } from '@preact/signals';
import type { Key } from './en';
import { clock as clockIn, sayIn, wordIn, type Lang } from './say';

const stored = localStorage.getItem('lang');
const preferred: Lang = navigator.language.startsWith('ko') ? 'ko' : 'en';
export const lang = signal<Lang>(stored === 'ko' || stored === 'en' ? stored : preferred);

lang.subscribe((value) => {
  document.documentElement.lang = value;
});

export function switchLanguage(): void {
  lang.value = lang.value === 'en' ? 'ko' : 'en';
  localStorage.setItem('lang', lang.value);
}

export const say = (key: Key, values?: Record<string, string | number>): string => sayIn(lang.value, key, values);
export const word = (group: string, name: string | null | undefined): string => wordIn(lang.value, group, name);
export const clock = (ms: number, now = Date.now()): string => clockIn(lang.value, ms, now);
