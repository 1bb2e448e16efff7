// Incidents as they are: the list, and one with its alerts and what was sent.
import { useLive } from '../../api/live';
import type { Alert, Delivery, Incident, IncidentInFull } from '../../api/types';
import { Empty, Fact, Facts, Glyph, Lasts, Loaded, Pill, ShowFilter, StatePill, Time } from '../../parts';
import { say, word } from '../../words';

const glyphOf = (i: Incident) => (i.state === 'open' ? i.severity : 'ok');

export function Incidents({ all }: { all: boolean }) {
  const live = useLive<{ incidents: Incident[] }>(`/incidents${all ? '' : '?state=open'}`);
  return (
    <div class="page">
      <div class="page-head">
        <h1>{say('incidents.title')}</h1>
        <ShowFilter base="/incidents" all={all} />
      </div>
      <Loaded live={live}>
        {({ incidents }) =>
          incidents.length === 0 ? (
            <Empty what={all ? 'incidents.none.all' : 'incidents.none'} hint="incidents.none.hint" />
          ) : (
            <ul class="panel rows">
              {incidents.map((i) => (
                <Row key={i.id} incident={i} />
              ))}
            </ul>
          )
        }
      </Loaded>
    </div>
  );
}

function Row({ incident: i }: { incident: Incident }) {
  return (
    <li>
      <a class={`row ${i.state === 'open' ? `edge-${i.severity}` : ''}`} href={`/incidents/${i.id}`}>
        <Glyph of={glyphOf(i)} />
        <span class="row-main">
          <b>{i.title}</b>
          <small>
            <span class="mono">{i.id}</span> · {say('incident.alerts.n', { n: i.alerts.length })}
            {i.ticket && (
              <>
                {' · '}
                <span class="mono">{i.ticket}</span>
              </>
            )}
            {i.owner && ` · ${i.owner}`}
          </small>
        </span>
        <span class="row-side">
          <StatePill state={i.state} />
          <small>
            <Time ms={i.opened} /> · <Lasts from={i.opened} to={i.recovered ?? i.closed} />
          </small>
        </span>
      </a>
    </li>
  );
}

export function IncidentPage({ id }: { id: string }) {
  const live = useLive<IncidentInFull>(`/incidents/${encodeURIComponent(id)}`);
  return (
    <div class="page">
      <Loaded live={live}>{(incident) => <Body incident={incident} />}</Loaded>
    </div>
  );
}

function Body({ incident: i }: { incident: IncidentInFull }) {
  return (
    <>
      <header class="object-head">
        <p class="above">
          <Glyph of={glyphOf(i)} /> <span class="mono">{i.id}</span> <StatePill state={i.state} />
          <Pill tone={i.severity}>{word('severity', i.severity)}</Pill>
        </p>
        <h1>{i.title}</h1>
        <div class="actions">
          <a class="button primary" href={`/replay/${i.id}`}>
            {say('incident.replay')}
          </a>
          {i.ticket && (
            <a class="button" href={`/tickets/${i.ticket}`}>
              {say('incident.ticket')} {i.ticket}
            </a>
          )}
        </div>
      </header>
      <div class="columns">
        <div class="stack">
          <Alerts alerts={i.members} />
          <History timeline={i.timeline} />
        </div>
        <div class="stack">
          <IncidentFacts incident={i} />
          <Deliveries deliveries={i.deliveries} />
        </div>
      </div>
    </>
  );
}

function IncidentFacts({ incident: i }: { incident: Incident }) {
  const services = Object.keys(i.services);
  return (
    <section class="panel">
      <h2>{say('incident.facts')}</h2>
      <Facts>
        <Fact name="incident.began">
          <Time ms={i.opened} />
        </Fact>
        <Fact name="incident.lasts">
          <Lasts from={i.opened} to={i.recovered ?? i.closed} />
        </Fact>
        {i.recovered && (
          <Fact name="incident.recovered">
            <Time ms={i.recovered} />
          </Fact>
        )}
        {i.closed && (
          <Fact name="incident.closed">
            <Time ms={i.closed} />
          </Fact>
        )}
        <Fact name="incident.generation">{i.generation}</Fact>
        {i.flaps > 0 && <Fact name="incident.flaps">{i.flaps}</Fact>}
        {services.length > 0 && <Fact name="incident.services">{services.join(', ')}</Fact>}
        <Fact name="incident.ticket">
          {i.ticket ? <a href={`/tickets/${i.ticket}`}>{i.ticket}</a> : say('incident.none.ticket')}
        </Fact>
        {i.owner && <Fact name="incident.owner">{i.owner}</Fact>}
      </Facts>
    </section>
  );
}

function Alerts({ alerts }: { alerts: Alert[] }) {
  return (
    <section class="panel">
      <h2>
        {say('incident.alerts')} <small>{alerts.length}</small>
      </h2>
      <ul class="rows">
        {alerts.map((a) => (
          <li key={a.id} class="row">
            <Glyph of={a.state === 'firing' ? (a.severity ?? 'nodata') : a.state === 'nodata' ? 'nodata' : 'ok'} />
            <span class="row-main">
              <b>{a.summary || a.rule}</b>
              <small>
                {a.rule}
                {a.resource_name && ` · ${a.resource_name}`}
              </small>
            </span>
            <span class="row-side">
              <span>{word('state', a.state)}</span>
              <small>
                <Time ms={a.since} />
              </small>
            </span>
          </li>
        ))}
      </ul>
    </section>
  );
}

function Deliveries({ deliveries }: { deliveries: Delivery[] }) {
  return (
    <section class="panel">
      <h2>
        {say('incident.deliveries')} <small>{deliveries.length}</small>
      </h2>
      {deliveries.length === 0 && <p class="quiet">{say('incident.deliveries.none')}</p>}
      <ul class="rows">
        {deliveries.map((d, n) => (
          <li key={n} class="row">
            <span class="row-main">
              <b>{d.receiver}</b>
              <small>
                {d.channel ?? d.kind} · {say('incident.attempts', { n: d.attempts })}
                {d.last_error && ` · ${d.last_error}`}
              </small>
            </span>
            <span class="row-side">
              <StatePill state={d.state} />
            </span>
          </li>
        ))}
      </ul>
    </section>
  );
}

function History({ timeline }: { timeline: { at: number; what: string }[] }) {
  if (timeline.length === 0) return null;
  return (
    <section class="panel">
      <h2>{say('incident.history')}</h2>
      <ol class="lines">
        {timeline.map((t, n) => (
          <li key={n}>
            <Time ms={t.at} /> <span>{t.what}</span>
          </li>
        ))}
      </ol>
    </section>
  );
}
