import assert from 'node:assert/strict';
import { test } from 'node:test';
import { routeOf } from './routes';

test('a path names a screen and what it shows', () => {
  assert.deepEqual(routeOf('/'), { screen: 'incidents' });
  assert.deepEqual(routeOf('/incidents/'), { screen: 'incidents' });
  assert.deepEqual(routeOf('/incidents/INC-1'), { screen: 'incident', id: 'INC-1' });
  assert.deepEqual(routeOf('/tickets'), { screen: 'tickets' });
  assert.deepEqual(routeOf('/tickets/T-1'), { screen: 'ticket', id: 'T-1' });
  assert.deepEqual(routeOf('/replay/INC-1'), { screen: 'replay', id: 'INC-1' });
  for (const path of ['/replay', '/nowhere', '/tickets/T-1/more']) {
    assert.deepEqual(routeOf(path), { screen: 'missing' }, path);
  }
});
