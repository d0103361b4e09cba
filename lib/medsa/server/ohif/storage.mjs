// Unsaved work in the browser's own database, by series and window: a reload, a crash, a closed tab lose nothing.

import { unzipped, zipped } from './nrrd.mjs';
import { WINDOW } from './server.mjs';

const STORE = 'work', HOLD = name => `medsa-window-${name}`;

// Held as long as this window lives: others leave its work to it.
navigator.locks?.request(HOLD(WINDOW), () => new Promise(() => {}));

const finished = request => new Promise((done, failed) => {
  request.onsuccess = () => done(request.result);
  request.onerror = () => failed(request.error);
});

async function store(mode) {
  const opening = indexedDB.open('medsa', 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE, { keyPath: ['series', 'window'] });
  return (await finished(opening)).transaction(STORE, mode).objectStore(STORE);
}

/** Keep the unsaved work on a series. */
export async function keep(work) {
  const { voxels, objects, labels } = work.kept(), { series, grid: { sizes } } = work;
  const entry = { series, window: WINDOW, sizes, objects, labels, when: Date.now(), voxels: await zipped(voxels) };
  await finished((await store('readwrite')).put(entry));
}

/** There is nothing unsaved any more. */
export async function forget(series, window = WINDOW) {
  await finished((await store('readwrite')).delete([series, window]));
}

/** What was `left` is this window's from now on. */
export async function adopt(work, left) {
  await keep(work);
  if (left.window !== WINDOW) await forget(work.series, left.window);
}

/** {voxels, objects, labels, when} that this window left, or one that is closed; null when there is none. */
export async function kept(series, sizes) {
  const all = await finished((await store('readonly')).getAll(IDBKeyRange.bound([series, ''], [series, '\uffff'])));
  const locks = await navigator.locks?.query();
  const open = new Set(locks?.held.map(lock => lock.name));
  const mine = all.filter(one => one.window === WINDOW || !open.has(HOLD(one.window)));
  const newest = mine.toSorted((a, b) => b.when - a.when)[0];
  if (!newest || String(newest.sizes) !== String(sizes)) return null;
  return { ...newest, voxels: await unzipped(newest.voxels) };
}
