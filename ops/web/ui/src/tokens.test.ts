import assert from 'node:assert/strict';
import { test } from 'node:test';
import css from './tokens.css?raw';

function theme(name: string): Record<string, string> {
  const block = css.match(new RegExp(`data-theme=${name}\\]\\{([^}]*)\\}`))?.[1] ?? '';
  return Object.fromEntries([...block.matchAll(/--([\w-]+):\s*(#[0-9a-f]{6})\b/g)].map((m) => [m[1]!, m[2]!]));
}

function luminance(hex: string): number {
  const channel = (at: number) => {
    const c = parseInt(hex.slice(at, at + 2), 16) / 255;
    return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  };
  return 0.2126 * channel(1) + 0.7152 * channel(3) + 0.0722 * channel(5);
}

function contrast(a: string, b: string): number {
  const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x) as [number, number];
  return (high + 0.05) / (low + 0.05);
}

test('text can be read and fills can be seen in both themes', () => {
  for (const name of ['dark', 'light']) {
    const t = theme(name);
    for (const ground of ['bg', 'panel']) {
      for (const text of ['ink', 'ink-2', 'ink-3', 'critical', 'major', 'minor', 'ok', 'nodata', 'accent']) {
        const got = contrast(t[text]!, t[ground]!);
        assert.ok(got >= 4.5, `${name}: ${text} on ${ground} is ${got.toFixed(2)}`);
      }
    }
    for (const fill of ['critical-f', 'major-f', 'minor-f', 'ok-f', 'nodata-f']) {
      assert.ok(contrast(t[fill]!, t.panel!) >= 3, `${name}: ${fill}`);
    }
    assert.ok(contrast(t['on-accent']!, t.accent!) >= 4.5, `${name}: button`);
  }
});
