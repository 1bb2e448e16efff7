// Bundles `src/**/*.test.ts` with Vite, so that tests are TypeScript too, and runs them with `node --test`.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'vite';

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const tests = readdirSync(join(root, 'src'), { recursive: true })
  .map(String)
  .filter((name) => name.endsWith('.test.ts'));
if (tests.length === 0) throw new Error('no tests found under src');
const outDir = mkdtempSync(join(tmpdir(), 'hindcast-ui-test-'));
try {
  const input = Object.fromEntries(tests.map((t) => [t.replaceAll('/', '-').replace(/\.ts$/, ''), join(root, 'src', t)]));
  await build({
    root,
    logLevel: 'warn',
    publicDir: false,
    // The bundles lie outside of this folder and find no packages there.
    ssr: { noExternal: true },
    build: { ssr: true, outDir, rollupOptions: { input, output: { entryFileNames: '[name].mjs' } } },
  });
  const files = Object.keys(input).map((name) => join(outDir, `${name}.mjs`));
  const run = spawnSync(process.execPath, ['--test', ...files], { stdio: 'inherit' });
  process.exitCode = run.status ?? 1;
} finally {
  rmSync(outDir, { recursive: true, force: true });
}
