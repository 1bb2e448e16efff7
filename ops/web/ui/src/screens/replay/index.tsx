// Where the replay page will be: until then, how to run the replay that exists.
import { API } from '../../api/client';
import { CopyLine } from '../../parts';
import { say } from '../../words';

export function ReplayPage({ id }: { id: string }) {
  const grpc = `grpcurl -plaintext -d '{"incident":"${id}"}' ${location.host} hindcast.v1.Replay/Play`;
  return (
    <div class="page">
      <header class="object-head">
        <h1>{say('replay.title', { id })}</h1>
        <p class="quiet">{say('replay.hint')}</p>
      </header>
      <section class="panel">
        <h2>{say('replay.watch')}</h2>
        <CopyLine text={`hindcast replay ${id}`} />
        <h2>{say('replay.digest')}</h2>
        <CopyLine text={`hindcast replay ${id} --digest`} />
        <h2>{say('replay.frames')}</h2>
        <CopyLine text={`hindcast replay ${id} -o ndjson`} />
        <h2>{say('replay.api')}</h2>
        <CopyLine text={grpc} />
        <p class="quiet">
          <a href={`/incidents/${id}`}>{id}</a> ·{' '}
          <a href={`${API}/incidents/${id}`}>{say('replay.incident')}</a>
        </p>
      </section>
    </div>
  );
}
