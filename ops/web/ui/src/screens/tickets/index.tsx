// The desk: the queue, and one ticket with take, note and resolve.
import { useSignal } from '@preact/signals';
import { useEffect, useRef } from 'preact/hooks';
import { ApiError, change } from '../../api/client';
import { useLive, type Live } from '../../api/live';
import type { Ticket, TicketInFull } from '../../api/types';
import {
  Empty, errorText, Fact, Facts, Glyph, Loaded, Notice, PriorityPill, ShowFilter, StatusPill, Time,
} from '../../parts';
import { say, word } from '../../words';

export function Tickets({ all }: { all: boolean }) {
  const live = useLive<{ tickets: Ticket[] }>(`/tickets${all ? '' : '?status=open'}`);
  return (
    <div class="page">
      <div class="page-head">
        <h1>{say('tickets.title')}</h1>
        <ShowFilter base="/tickets" all={all} />
      </div>
      <Loaded live={live}>
        {({ tickets }) =>
          tickets.length === 0 ? (
            <Empty what={all ? 'tickets.none.all' : 'tickets.none'} hint="tickets.none.hint" />
          ) : (
            <ul class="panel rows">
              {tickets.map((t) => (
                <Row key={t.number} ticket={t} />
              ))}
            </ul>
          )
        }
      </Loaded>
    </div>
  );
}

function Row({ ticket: t }: { ticket: Ticket }) {
  const urgent = t.status !== 'closed' && t.status !== 'cancelled' && t.status !== 'resolved';
  return (
    <li>
      <a class={`row ${urgent ? `edge-${t.severity}` : ''}`} href={`/tickets/${t.number}`}>
        <span class="row-main">
          <b>{t.title}</b>
          <small>
            <PriorityPill priority={t.priority} /> <span class="mono">{t.number}</span> ·{' '}
            <span class="mono">{t.incident}</span> · {t.owner ?? say('ticket.unassigned')}
          </small>
        </span>
        <span class="row-side">
          <StatusPill status={t.status} />
          <small>
            <Time ms={t.created_ms} />
          </small>
        </span>
      </a>
    </li>
  );
}

export function TicketPage({ id }: { id: string }) {
  const live = useLive<TicketInFull>(`/tickets/${encodeURIComponent(id)}`);
  return (
    <div class="page">
      <Loaded live={live}>{(ticket) => <Body ticket={ticket} live={live} />}</Loaded>
    </div>
  );
}

const takeable = (t: Ticket) => ['new', 'assigned', 'in_progress', 'pending'].includes(t.status);
const resolvable = (t: Ticket) => ['assigned', 'in_progress', 'pending'].includes(t.status);

function Body({ ticket: t, live }: { ticket: TicketInFull; live: Live<TicketInFull> }) {
  const failed = useSignal<ApiError | undefined>(undefined);
  const busy = useSignal(false);
  const dialog = useRef<HTMLDialogElement>(null);
  const send = async (what: string, body: object): Promise<boolean> => {
    busy.value = true;
    failed.value = undefined;
    try {
      live.put(await change<TicketInFull>(`/tickets/${t.number}/${what}`, body, t.version));
      return true;
    } catch (error) {
      failed.value = error instanceof ApiError ? error : new ApiError('internal', String(error));
      live.reload();
      return false;
    } finally {
      busy.value = false;
    }
  };
  useKeys({
    i: () => takeable(t) && send('take', {}),
    e: () => resolvable(t) && dialog.current?.showModal(),
    n: () => document.getElementById('note')?.focus(),
  });
  return (
    <>
      <header class="object-head">
        <p class="above">
          <span class="mono">{t.number}</span> <PriorityPill priority={t.priority} /> <StatusPill status={t.status} />
        </p>
        <h1>{t.title}</h1>
        <div class="actions">
          {takeable(t) && (
            <button class={`button ${t.owner ? '' : 'primary'}`} disabled={busy.value} onClick={() => send('take', {})}>
              {say('ticket.take')} <kbd>I</kbd>
            </button>
          )}
          {takeable(t) && (
            <button
              class={`button ${t.owner ? 'primary' : ''}`}
              disabled={busy.value || !resolvable(t)}
              title={resolvable(t) ? undefined : say('ticket.resolve.first')}
              onClick={() => dialog.current?.showModal()}
            >
              {say('ticket.resolve')} <kbd>E</kbd>
            </button>
          )}
          <a class="button" href={`/replay/${t.incident}`}>
            {say('ticket.moment')}
          </a>
        </div>
      </header>
      {failed.value && (
        <Notice tone="critical">
          {errorText(failed.value)}
          {failed.value.code === 'conflict' && ` ${say('ticket.conflict')}`}
        </Notice>
      )}
      <div class="columns">
        <div class="stack">
          <section class="panel">
            <h2>{say('ticket.thread')}</h2>
            <Thread ticket={t} />
            <Composer busy={busy.value} send={(text) => send('notes', { text })} />
          </section>
        </div>
        <div class="stack">
          <TicketFacts ticket={t} />
          <Audit ticket={t} />
        </div>
      </div>
      <ResolveDialog number={t.number} dialog={dialog} send={(body) => send('transition', { to: 'resolved', ...body })} />
    </>
  );
}

function Thread({ ticket }: { ticket: TicketInFull }) {
  return (
    <ol class="thread">
      {ticket.thread.map((e, n) => (
        <li key={n} class={`${e.kind} ${e.kind === 'system' && !e.text.includes('\n') ? 'short' : ''}`}>
          <p class="said">
            <b>{e.actor}</b> <Time ms={e.at_ms} />
          </p>{' '}
          <p class="text">{e.text}</p>
        </li>
      ))}
    </ol>
  );
}

function Composer({ busy, send }: { busy: boolean; send: (text: string) => Promise<boolean> }) {
  const text = useSignal('');
  const submit = async (event?: Event) => {
    event?.preventDefault();
    if (text.value.trim() && !busy && (await send(text.value))) text.value = '';
  };
  return (
    <form class="composer" onSubmit={submit}>
      <label class="hidden" for="note">
        {say('ticket.note')}
      </label>
      <textarea
        id="note"
        rows={3}
        placeholder={say('ticket.note.hint')}
        value={text.value}
        onInput={(e) => {
          text.value = e.currentTarget.value;
        }}
        onKeyDown={(e) => {
          if (e.key === 'Enter' && (e.ctrlKey || e.metaKey)) submit(e);
        }}
      />
      <div class="composer-end">
        <kbd>Ctrl ↵</kbd>
        <button class="button primary" disabled={busy || !text.value.trim()}>
          {say('ticket.note.add')}
        </button>
      </div>
    </form>
  );
}

const CODES = ['fixed', 'workaround', 'false-alarm', 'duplicate', 'other'] as const;

function ResolveDialog(props: {
  number: string;
  dialog: { current: HTMLDialogElement | null };
  send: (body: { code: string; text: string }) => Promise<boolean>;
}) {
  const { dialog } = props;
  const submit = async (event: Event) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget as HTMLFormElement);
    dialog.current?.close();
    await props.send({ code: String(form.get('code')), text: String(form.get('text')) });
  };
  return (
    <dialog ref={dialog} aria-labelledby="resolve-title">
      <form onSubmit={submit}>
        <h2 id="resolve-title">{say('ticket.resolve.title', { number: props.number })}</h2>
        <label>
          {say('ticket.code')}
          <select name="code">
            {CODES.map((code) => (
              <option key={code} value={code}>
                {say(`ticket.code.${code}`)}
              </option>
            ))}
          </select>
        </label>
        <label>
          {say('ticket.text')}
          <textarea name="text" rows={4} required />
        </label>
        <div class="composer-end">
          <button type="button" class="button" onClick={() => dialog.current?.close()}>
            {say('ticket.cancel')}
          </button>
          <button class="button primary">{say('ticket.confirm')}</button>
        </div>
      </form>
    </dialog>
  );
}

function TicketFacts({ ticket: t }: { ticket: TicketInFull }) {
  const why = { impact: word('level', t.impact), urgency: word('level', t.urgency) };
  const services = Object.keys(t.services);
  return (
    <section class="panel">
      <h2>{say('incident.facts')}</h2>
      <Facts>
        <Fact name="ticket.owner">{t.owner ?? say('ticket.unassigned')}</Fact>
        {t.group && <Fact name="ticket.group">{t.group}</Fact>}
        <Fact name="ticket.priority">
          <PriorityPill priority={t.priority} /> <small>{say('ticket.why', why)}</small>
        </Fact>
        <Fact name="ticket.incident">
          <Glyph of={t.severity} /> <a href={`/incidents/${t.incident}`}>{t.incident}</a>
        </Fact>
        {services.length > 0 && <Fact name="ticket.services">{services.join(', ')}</Fact>}
        {t.pending_reason && <Fact name="ticket.waits">{word('reason', t.pending_reason)}</Fact>}
        {t.resolution_code && (
          <Fact name="ticket.resolution">
            {t.resolution_code}: {t.resolution_text}
          </Fact>
        )}
        {t.flaps > 0 && <Fact name="incident.flaps">{t.flaps}</Fact>}
        {t.recurrence_of && (
          <Fact name="ticket.follows">
            <a href={`/tickets/${t.recurrence_of}`}>{t.recurrence_of}</a>
          </Fact>
        )}
        <Fact name="ticket.created">
          <Time ms={t.created_ms} />
        </Fact>
        <Fact name="ticket.updated">
          <Time ms={t.updated_ms} />
        </Fact>
        <Fact name="ticket.version">{t.version}</Fact>
      </Facts>
    </section>
  );
}

function Audit({ ticket }: { ticket: TicketInFull }) {
  return (
    <section class="panel">
      <h2>
        {say('ticket.audit')} <small>{ticket.audit.length}</small>
      </h2>
      <ol class="lines">
        {ticket.audit.map((r) => (
          <li key={r.seq} title={`#${r.seq} ${r.hash}`}>
            <Time ms={r.at_ms} />{' '}
            <span>
              <b>{r.actor}</b> {r.action.replaceAll('_', ' ')}
            </span>
          </li>
        ))}
      </ol>
    </section>
  );
}

// Single keys, outside of fields and dialogs only.
function useKeys(keys: Record<string, () => unknown>): void {
  useEffect(() => {
    const press = (event: KeyboardEvent) => {
      const typing = (event.target as Element).closest('input, textarea, select, dialog');
      if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
      const run = keys[event.key];
      if (!run) return;
      event.preventDefault();
      run();
    };
    addEventListener('keydown', press);
    return () => removeEventListener('keydown', press);
  });
}
