import assert from 'node:assert/strict';
import { test } from 'node:test';
import { en } from './en';
import { ko } from './ko';
import { clock, duration, fill, iso, sayIn, wordIn } from './say';

test('both languages have the same keys and placeholders', () => {
  assert.deepEqual(Object.keys(ko).sort(), Object.keys(en).sort());
  const names = (text: string) => [...text.matchAll(/\{(\w+)\}/g)].map((m) => m[1]).sort();
  for (const key of Object.keys(en) as (keyof typeof en)[]) {
    assert.deepEqual(names(ko[key]), names(en[key]), key);
    assert.notEqual(ko[key].trim(), '', key);
  }
});

test('durations show their two largest units', () => {
  const cases: [number, string][] = [
    [-5, '0s'],
    [999, '0s'],
    [59_000, '59s'],
    [60_000, '1m'],
    [1_066_000, '17m 46s'],
    [3_600_000, '1h'],
    [3_660_000, '1h 01m'],
    [93_600_000, '1d 02h'],
  ];
  for (const [ms, text] of cases) assert.equal(duration(ms), text);
});

test('a time of today is short, another has its date', () => {
  const at = Date.UTC(2026, 10, 22, 14, 5, 12);
  assert.equal(clock('en', at, at + 1000, 'UTC'), '14:05:12');
  assert.match(clock('en', at, at + 86_400_000, 'UTC'), /^Nov 22 14:05:12$/);
  assert.equal(clock('ko', at, at + 86_400_000, 'UTC'), '11월 22일 14:05:12');
  assert.equal(clock('ko', Date.UTC(2026, 0, 1, 1, 2, 3), Date.UTC(2026, 0, 1), 'UTC'), '01:02:03');
});

test('an ISO time reads back as the same instant', () => {
  const at = Date.UTC(2026, 2, 29, 0, 30, 0, 250);
  assert.equal(Date.parse(iso(at)), at);
});

test('words fall back to what the server says', () => {
  assert.equal(wordIn('ko', 'status', 'in_progress'), '처리 중');
  assert.equal(wordIn('en', 'status', 'brand_new'), 'brand new');
  assert.equal(wordIn('en', 'status', null), '–');
  assert.equal(sayIn('en', 'replay.title', { id: 'INC-1' }), 'Replay of INC-1');
  assert.equal(fill('{a} {b}', { a: 0 }), '0 {b}');
});
