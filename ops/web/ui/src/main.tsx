// The shell: navigation, name, language, theme; and the screen that the path names.
import { render } from 'preact';
import { useEffect } from 'preact/hooks';
import { actor } from './api/client';
import { Empty } from './parts';
import { follow, go, place, routeOf, type Route } from './routes';
import { IncidentPage, Incidents } from './screens/incidents';
import { ReplayPage } from './screens/replay';
import { TicketPage, Tickets } from './screens/tickets';
import { switchTheme } from './theme';
import { say, switchLanguage } from './words';
import './tokens.css';
import './base.css';

const ICONS = {
  incidents: 'M10 3 18 17H2zM10 8v4M10 14v.8',
  desk: 'M3 5h14v3a2 2 0 0 0 0 4v3H3v-3a2 2 0 0 0 0-4zM12 5v2M12 9.2v1.6M12 13v2',
};

function NavLink(props: { to: string; icon: keyof typeof ICONS; text: string; here: boolean }) {
  return (
    <a href={props.to} aria-current={props.here ? 'page' : undefined}>
      <svg viewBox="0 0 20 20" aria-hidden="true">
        <path d={ICONS[props.icon]} />
      </svg>
      <span>{props.text}</span>
    </a>
  );
}

function Shell() {
  const [path = '/', query = ''] = place.value.split('?');
  const route = routeOf(path);
  const desk = route.screen === 'tickets' || route.screen === 'ticket';
  const name = 'id' in route ? `${route.id} · ` : '';
  useEffect(() => {
    document.title = `${name}${say('app.name')}`;
  });
  return (
    <>
      <a class="skip" href="#main">
        {say('nav.skip')}
      </a>
      <nav class="rail" aria-label={say('nav.main')}>
        <img class="logo" src="/icon.svg" alt="" width="30" height="30" />
        <NavLink to="/incidents" icon="incidents" text={say('nav.incidents')} here={!desk && route.screen !== 'missing'} />
        <NavLink to="/tickets" icon="desk" text={say('nav.desk')} here={desk} />
      </nav>
      <header class="top">
        <b>{say('app.name')}</b>
        <span class="space" />
        <label class="you" title={say('top.you.hint')}>
          <span>{say('top.you')}</span>
          <input
            value={actor.value}
            placeholder="desk"
            maxLength={40}
            autocomplete="username"
            onInput={(e) => {
              actor.value = e.currentTarget.value;
            }}
          />
        </label>
        <button class="button icon" onClick={switchLanguage} aria-label={say('top.language')} title={say('top.language')}>
          {say('top.language.short')}
        </button>
        <button class="button icon" onClick={switchTheme} aria-label={say('top.theme')} title={say('top.theme')}>
          <svg viewBox="0 0 20 20" aria-hidden="true">
            <circle cx="10" cy="10" r="6.5" />
            <path d="M10 3.5a6.5 6.5 0 0 1 0 13z" class="filled" />
          </svg>
        </button>
      </header>
      <main id="main" tabIndex={-1}>
        <Screen route={route} all={new URLSearchParams(query).get('show') === 'all'} />
      </main>
    </>
  );
}

function Screen({ route, all }: { route: Route; all: boolean }) {
  switch (route.screen) {
    case 'incidents':
      return <Incidents all={all} />;
    case 'incident':
      return <IncidentPage key={route.id} id={route.id} />;
    case 'tickets':
      return <Tickets all={all} />;
    case 'ticket':
      return <TicketPage key={route.id} id={route.id} />;
    case 'replay':
      return <ReplayPage key={route.id} id={route.id} />;
    case 'missing':
      return <Empty what="page.missing" hint="page.missing.hint" />;
  }
}

// `g i` and `g d` go to the two places, `t` changes the theme; never while typing.
let wentAt = 0;
addEventListener('keydown', (event) => {
  const typing = (event.target as Element).closest('input, textarea, select, dialog');
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const after = Date.now() - wentAt < 1_000;
  if (event.key === 'g') wentAt = Date.now();
  else if (after && event.key === 'i') {
    event.stopImmediatePropagation();
    go('/incidents');
  } else if (after && event.key === 'd') go('/tickets');
  else if (event.key === 't') switchTheme();
  if (event.key !== 'g') wentAt = 0;
});

follow();
render(<Shell />, document.getElementById('app')!);
