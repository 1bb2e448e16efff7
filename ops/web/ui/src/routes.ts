// Path → screen. Links are plain `<a href>`; clicks on our own paths stay on the page.
import { signal } from '@preact/signals';

export type Route =
  | { screen: 'incidents' }
  | { screen: 'incident'; id: string }
  | { screen: 'tickets' }
  | { screen: 'ticket'; id: string }
  | { screen: 'replay'; id: string }
  | { screen: 'missing' };

export function routeOf(path: string): Route {
  const [first = '', id = '', rest] = path.split('/').filter(Boolean);
  const wanted = decodeURIComponent(id);
  if (rest !== undefined) return { screen: 'missing' };
  if (first === '' || (first === 'incidents' && !id)) return { screen: 'incidents' };
  if (first === 'incidents') return { screen: 'incident', id: wanted };
  if (first === 'tickets') return id ? { screen: 'ticket', id: wanted } : { screen: 'tickets' };
  if (first === 'replay' && id) return { screen: 'replay', id: wanted };
  return { screen: 'missing' };
}

// What follows the path belongs to the screen: `?show=all`.
export const place = signal(here());

function here(): string {
  return typeof location === 'undefined' ? '/' : location.pathname + location.search;
}

export function go(to: string): void {
  if (to === here()) return;
  history.pushState(null, '', to);
  place.value = to;
  scrollTo(0, 0);
}

export function follow(): void {
  addEventListener('popstate', () => {
    place.value = here();
  });
  document.addEventListener('click', (event) => {
    const plain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
    const link = (event.target as Element | null)?.closest?.('a');
    if (!plain || event.defaultPrevented || !link || link.target || link.hasAttribute('download')) return;
    const url = new URL(link.href);
    if (url.origin !== location.origin || url.pathname.startsWith('/api/') || url.hash) return;
    event.preventDefault();
    go(url.pathname + url.search);
  });
}
