// What the panel computes without a viewer, in Node: `node --test tests/unit/server/ohif_modules.mjs`.

import assert from 'node:assert/strict';
import test from 'node:test';

import { file, offset, parse, unzipped } from '../../../lib/medsa/server/ohif/nrrd.mjs';
import { sampled, touched, within } from '../../../lib/medsa/server/ohif/strokes.mjs';
import { missing } from '../../../lib/medsa/server/ohif/version.mjs';
import { joined, make, painted, underneath } from '../../../lib/medsa/server/ohif/voxels.mjs';
import { Work } from '../../../lib/medsa/server/ohif/work.mjs';

const GRID = { sizes: [4, 3, 2], directions: [[2, 0, 0], [0, 0, -3], [0, 5, 0]], origin: [-10, 20.5, 7] };
const LABELS = [{ name: 'liver', index: 5, color: [1, 2, 3] }, { name: 'spleen', index: 6, color: [3, 2, 1] }];
const work = () => new Work('1.2', '1', GRID, LABELS);
const holds = (...voxels) => ({
  inside: index => voxels.includes(index), from: Math.floor(Math.min(...voxels) / 12), to: Math.floor(Math.max(...voxels) / 12) + 1,
});
const where = (found, value) => [...found.voxels.keys()].filter(index => found.voxels[index] === value);

/** A random number generator with a seed, so that a failure can be seen again. */
function random(seed) {
  let state = seed;
  return most => { state = (state * 1103515245 + 12345) % 2147483648; return Math.floor((state / 2147483648) * most); };
}

test('an NRRD file comes back as it went, with its place', async () => {
  const data = Uint8Array.from({ length: 24 }, (_, n) => n), blob = await file(GRID, data);
  const bytes = new Uint8Array(await blob.arrayBuffer()), text = new TextDecoder('latin1').decode(bytes);
  const end = text.indexOf('\n\n') + 2, raw = await unzipped(new Blob([bytes.slice(end)]));
  const plain = new Blob([text.slice(0, end).replace('gzip', 'raw'), raw]);
  const found = parse(await plain.arrayBuffer());
  assert.deepEqual(found, { ...GRID, data });
  assert.equal(offset(found, GRID), 0);
});

test('what is no mask is refused', () => {
  for (const text of ['', 'NRRD0004\n\n', 'NRRD0004\ntype: float\nsizes: 1 1 1\nencoding: raw\n\n1234', '<html>'])
    assert.throws(() => parse(new TextEncoder().encode(text).buffer), /no mask/);
});

test('a mask that lies elsewhere than the screen is noticed', () => {
  assert.equal(offset({ ...GRID, sizes: [4, 3, 1], origin: [-10, 25.5, 7] }, GRID, 1), 0);
  assert.ok(offset({ ...GRID, origin: [-10, 20.5, 10] }, GRID) > 1);
  assert.ok(offset({ ...GRID, directions: [[2, 0, 0], [0, 0, -3], [0, 5, 1]] }, GRID) > 0.3);
});

test('a change and its taking back leave nothing behind, whatever was painted', () => {
  for (let seed = 1; seed <= 200; seed += 1) {
    const next = random(seed), voxels = Uint8Array.from({ length: 40 }, () => next(3)), counts = new Float64Array(256);
    voxels.forEach(value => { counts[value] += 1; });
    const before = voxels.slice(), steps = [];
    for (let n = 0; n < 4; n += 1) {
      const mask = Uint8Array.from({ length: 40 }, () => next(2)), from = next(20), to = from + next(20) + 1;
      const under = underneath(voxels, steps, from, to);
      const change = painted(voxels, under, from, to, index => mask[index] > 0, 1 + next(2), next(2) > 0);
      make(voxels, counts, change);
      steps.push(change);
    }
    const after = voxels.slice(), all = steps.reduce(joined);
    make(voxels, counts, all, true);
    assert.deepEqual(voxels, before);
    make(voxels, counts, all);
    assert.deepEqual(voxels, after);
    for (let value = 0; value < 3; value += 1) assert.equal(counts[value], after.filter(one => one === value).length);
  }
});

test('the newest answer takes the place of the one before it, and not of what was accepted', () => {
  const found = work();
  found.answer(found.prompt('include', [[0, 0, 0]]), 0, 1, holds(0, 1, 2));
  found.answer(found.prompt('include', [[1, 0, 0]]), 0, 1, holds(1));
  assert.deepEqual(where(found, 5), [1]);
  found.accept();
  found.answer(found.prompt('include', [[3, 0, 0]]), 0, 1, holds(3));
  assert.deepEqual(where(found, 5), [1, 3]);
  found.answer(found.prompt('exclude', [[3, 0, 0]]), 0, 2, holds(15));
  assert.deepEqual(where(found, 5), [1, 15]);
  for (let n = 0; n < 2; n += 1) found.undo();
  assert.deepEqual(where(found, 5), [1]);
  found.undo();
  assert.equal(found.active.object.prompts.length, 2);
  found.answer(found.prompt('include', [[2, 0, 0]]), 0, 1, holds(2));
  assert.deepEqual(where(found, 5), [2]);
});

test('labels have their own ways back, and neither takes the other along', () => {
  const found = work(), [liver, spleen] = found.labels;
  found.answer(found.prompt('include', [[0, 0, 0]]), 0, 1, holds(0, 1));
  found.choose(spleen);
  found.answer(found.prompt('include', [[1, 0, 0]]), 0, 1, holds(1, 2));
  assert.deepEqual([where(found, 5), where(found, 6)], [[0, 1], [2]]);
  found.undo(liver);
  assert.deepEqual([where(found, 5), where(found, 6)], [[], [2]]);
  found.redo(liver);
  found.overwrite = true;
  found.answer(found.prompt('include', [[1, 0, 0]]), 0, 1, holds(1, 2));
  assert.deepEqual([where(found, 5), where(found, 6)], [[0], [1, 2]]);
  found.undo(spleen);
  assert.deepEqual([where(found, 5), where(found, 6)], [[0, 1], [2]]);
});

test('a brush adds, an eraser takes away, and both leave other labels alone unless told otherwise', () => {
  const found = work(), [liver, spleen] = found.labels;
  found.answer(found.prompt('include', [[0, 0, 0]]), 0, 1, holds(0, 1));
  found.paint([[1, 0, 0], [2, 0, 0], [0, 1, 1]], true);
  assert.deepEqual(where(found, 5), [0, 1, 2, 16]);
  assert.deepEqual(liver.object.prompts, []);
  found.choose(spleen);
  found.paint([[2, 0, 0], [3, 0, 0]], true);
  found.paint([[0, 0, 0], [3, 0, 0]], false);
  assert.deepEqual([where(found, 5), where(found, 6)], [[0, 1, 2, 16], []]);
  found.undo();
  found.overwrite = true;
  found.paint([[2, 0, 0]], true);
  assert.deepEqual([where(found, 5), where(found, 6)], [[0, 1, 16], [2, 3]]);
  found.undo();
  found.undo(liver);
  assert.deepEqual([where(found, 5), where(found, 6)], [[0, 1], [3]]);
  assert.equal(liver.object.prompts.length, 1);
  assert.equal(found.paint([[3, 0, 0]], true), null);
});

test('what was erased stays away when the next object is answered', () => {
  const found = work();
  found.answer(found.prompt('include', [[0, 0, 0]]), 0, 1, holds(0, 1, 2));
  found.paint([[2, 0, 0]], false);
  found.answer(found.prompt('include', [[3, 2, 0]]), 0, 1, holds(11));
  assert.deepEqual(where(found, 5), [0, 1, 11]);
});

test('points of a scribble lie along it, points of a lasso well inside', () => {
  for (let seed = 1; seed <= 60; seed += 1) {
    const next = random(seed), corner = [40 + next(60), 40 + next(60)], size = [30 + next(200), 30 + next(200)], path = [];
    for (let n = 0; n < 40; n += 1) {
      const angle = (n / 40) * 2 * Math.PI;
      path.push([corner[0] + size[0] * Math.cos(angle), corner[1] + size[1] * Math.sin(angle)]);
    }
    const along = sampled(path), inner = within(path);
    assert.ok(along.length > 1 && along.length <= 16 && along.every(point => path.includes(point)));
    assert.equal(inner.length, 8);
    for (const [x, y] of inner) assert.ok(Math.hypot((x - corner[0]) / size[0], (y - corner[1]) / size[1]) < 0.97);
    const gaps = inner.map((a, m) => Math.min(...inner.filter((_, n) => n !== m).map(b => Math.hypot(a[0] - b[0], a[1] - b[1]))));
    assert.ok(Math.min(...gaps) > Math.min(...size) / 4);
  }
  assert.deepEqual(within([[1, 1], [5, 1], [9, 1]]), [[1, 1]]);
});

test('a brush touches the voxels under it, on whatever plane and at whatever zoom', () => {
  for (let seed = 1; seed <= 100; seed += 1) {
    const next = random(seed), [a, b, c] = [[0, 1, 2], [1, 2, 0], [0, 2, 1]][next(3)], zoom = [0.4 + next(80) / 10, 0.4 + next(80) / 10];
    const middle = [20 + next(10), 20 + next(10), 20 + next(10)], radius = 1 + next(20);
    const canvasOf = voxel => [300 + zoom[0] * (voxel[a] - middle[a]), 200 - zoom[1] * (voxel[b] - middle[b])];
    const found = touched([[300, 200], [330, 190]], radius, middle, [a, b], canvasOf);
    const held = new Set(found.map(String));
    assert.equal(held.size, found.length);
    assert.ok(held.has(String(middle)));
    for (let m = -40; m <= 40; m += 1)
      for (let n = -40; n <= 40; n += 1) {
        const voxel = [...middle];
        voxel[a] += m; voxel[b] += n;
        const [x, y] = canvasOf(voxel), t = Math.max(0, Math.min(1, ((x - 300) * 30 + (y - 200) * -10) / 1000));
        const away = Math.hypot(x - 300 - 30 * t, y - 200 + 10 * t);
        if (away < 0.9 * radius) assert.ok(held.has(String(voxel)));
        if (away > radius + Math.hypot(...zoom) / 2) assert.ok(!held.has(String(voxel)));
      }
    assert.ok(found.every(voxel => voxel[c] === middle[c]));
  }
});

test('an answer that comes too late changes nothing', () => {
  const found = work(), old = found.prompt('include', [[0, 0, 0]]);
  found.prompt('include', [[1, 0, 0]]);
  found.answer(old, 0, 2, holds(0, 23));
  assert.deepEqual(where(found, 5), []);
});

test('without its last prompt an object is gone; a box takes the place of the one on its slice', () => {
  const found = work();
  found.answer(found.prompt('box', [[0, 0, 0], [2, 2, 0]]), 0, 1, holds(0, 1));
  found.answer(found.prompt('box', [[1, 0, 0], [2, 2, 0]]), 0, 1, holds(1));
  assert.equal(found.active.object.prompts.length, 1);
  found.remove(found.active, found.active.object.prompts[0]);
  assert.deepEqual(where(found, 5), []);
  found.undo();
  assert.deepEqual(where(found, 5), [1]);
});

test('what is kept is gone on from: corrections still take away what the open object had', () => {
  const found = work(), again = work();
  found.load(Uint8Array.from({ length: 24 }, (_, index) => (index === 20 ? 5 : 0)));
  found.answer(found.prompt('include', [[0, 0, 0]]), 0, 1, holds(0, 1, 2));
  again.restore(structuredClone(found.kept()));
  assert.deepEqual(where(again, 5), [0, 1, 2, 20]);
  assert.ok(again.unsaved);
  again.answer(again.prompt('exclude', [[2, 0, 0]]), 0, 1, holds(0));
  assert.deepEqual(where(again, 5), [0, 20]);
});

test('labels that the server does not have survive a reload', () => {
  const found = work(), again = work();
  found.choose(found.add({ name: 'polyp', index: 9, color: [0, 0, 0] }));
  found.answer(found.prompt('include', [[0, 0, 0]]), 0, 1, holds(0, 1));
  again.restore(structuredClone(found.kept()));
  assert.deepEqual(again.labels.map(label => label.name), ['liver', 'spleen', 'polyp']);
  assert.equal(again.labels[2].object.prompts.length, 1);
});

test('volumes are in millilitres, and cleared labels have none', () => {
  const found = work();
  found.answer(found.prompt('include', [[0, 0, 0]]), 0, 1, holds(0, 1));
  assert.equal(found.millilitres(found.active), 0.06);
  found.clear();
  assert.equal(found.millilitres(found.active), 0);
  assert.deepEqual(found.somewhere(found.undo().label), [0, 0, 0]);
});

test('another viewer is told what it lacks', () => {
  const gone = missing({ segmentationService: {} }, { cornerstone: {}, cornerstoneTools: {} });
  assert.ok(gone.includes('cornerstone.cache.getVolume') && gone.includes('viewportGridService.getState'));
});
