// Light or dark: as the system says, until the switch is used.
import { signal } from '@preact/signals';

type Theme = 'light' | 'dark';
const system = matchMedia('(prefers-color-scheme: dark)');
const stored = localStorage.getItem('theme');
const chosen = signal<Theme | undefined>(stored === 'light' || stored === 'dark' ? stored : undefined);

function apply(): void {
  document.documentElement.dataset.theme = chosen.value ?? (system.matches ? 'dark' : 'light');
}
system.addEventListener('change', apply);
chosen.subscribe(apply);

export function switchTheme(): void {
  chosen.value = document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark';
  localStorage.setItem('theme', chosen.value);
}
