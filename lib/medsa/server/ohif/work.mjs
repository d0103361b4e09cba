// What an annotator does to one series: labels, prompts, masks, and every step of it there and back.
//
// A label's open object is the set of its present prompts; accepting it leaves the mask and starts another.

import { NOTHING, dice, joined, make, painted, underneath } from './voxels.mjs';

const MOST_STEPS = 100;

/** No object at all. */
const NOWHERE = { inside: () => false, from: Infinity, to: -Infinity };

const next = object => ({ number: object.number + 1, prompts: [] });

export class Work extends EventTarget {
  /** `grid`: {sizes, directions, origin} in LPS millimetres; `labels`: [{name, index, color}]. */
  constructor(series, study, grid, labels) {
    super();
    Object.assign(this, { series, study, grid, overwrite: false, changed: 0, savedAt: 0, prompts: 0 });
    this.slice = grid.sizes[0] * grid.sizes[1];
    this.voxels = new Uint8Array(this.slice * grid.sizes[2]);
    this.counts = new Float64Array(256);
    this.counts[0] = this.voxels.length;
    this.labels = [];
    labels.forEach(label => this.add(label));
    this.active = this.labels[0];
  }

  add({ name, index, color }) {
    const label = { name, index, color, visible: true, object: { number: 1, prompts: [] }, done: [], undone: [] };
    this.labels.push(label);
    this.tell('labels');
    return label;
  }

  tell(what, detail) {
    this.dispatchEvent(new CustomEvent(what, { detail }));
  }

  choose(label) {
    this.active = label;
    this.tell('prompts');
  }

  get unsaved() {
    return this.changed !== this.savedAt;
  }

  /** Volume of a label in millilitres. */
  millilitres(label) {
    const [a, b, c] = this.grid.directions;
    const cubic = a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0]);
    return (this.counts[label.index] * Math.abs(cubic)) / 1000;
  }

  /** A voxel of a label, on the slice that holds most of it. */
  somewhere(label) {
    const held = Array.from({ length: this.grid.sizes[2] }, (_, k) => {
      const voxels = this.voxels.subarray(k * this.slice, (k + 1) * this.slice);
      return voxels.reduce((sum, value) => sum + (value === label.index), 0);
    });
    const k = held.indexOf(Math.max(...held)), at = this.voxels.indexOf(label.index, k * this.slice) - k * this.slice;
    return [at % this.grid.sizes[0], Math.floor(at / this.grid.sizes[0]), k];
  }

  /** One more prompt of the active label: {kind: include | exclude | box, points: [[i, j, k], ...], outline: the lasso}. */
  prompt(kind, points, outline = []) {
    const label = this.active, prompt = { id: (this.prompts += 1), kind, points, outline, k: points.at(-1)[2] };
    const others = label.object.prompts.filter(one => kind !== 'box' || one.kind !== 'box' || one.k !== prompt.k);
    return this.step(label, { ...label.object, prompts: [...others, prompt] });
  }

  remove(label, prompt) {
    const prompts = label.object.prompts.filter(one => one !== prompt);
    const step = this.step(label, { ...label.object, prompts });
    const rest = prompts.filter(one => one.kind !== 'exclude');
    if (!rest.length) this.answer(step, 0, this.grid.sizes[2], NOWHERE);
    else if (!rest.some(one => one.k === prompt.k)) this.answer(step, prompt.k, prompt.k + 1, NOWHERE);
    return step;
  }

  /** Leave the mask as it is; the next prompts of this label are about another object. */
  accept(label = this.active) {
    return label.object.prompts.length ? this.step(label, next(label.object), null) : null;
  }

  /** Add voxels to the active label by hand, or take them away from it; its open object is accepted. */
  paint(voxels, add) {
    const label = this.active, [I, J] = this.grid.sizes, { index } = label;
    const inside = new Set(voxels.map(([i, j, k]) => i + I * (j + J * k)));
    const at = Uint32Array.from(inside).toSorted().filter(one =>
      (add ? this.voxels[one] !== index && (this.overwrite || !this.voxels[one]) : this.voxels[one] === index));
    if (!at.length) return null;
    const step = this.step(label, next(label.object), null);
    this.make(step, { at, before: at.map(one => this.voxels[one]), after: at.map(() => (add ? index : 0)) });
    return step;
  }

  /** Take away what is there of a label. */
  clear(label = this.active) {
    if (!this.counts[label.index] && !label.object.prompts.length) return null;
    const step = this.step(label, next(label.object), null), all = this.voxels.length;
    this.make(step, painted(this.voxels, new Uint8Array(all), 0, all, () => false, label.index));
    return step;
  }

  /** From now on `object` is the label's open one; what changes belongs to `of`, an object's number or none. */
  step(label, object, of = object.number) {
    const step = { label, of, before: label.object, after: object, change: NOTHING };
    label.object = object;
    label.done = [...label.done, step].slice(-MOST_STEPS);
    label.undone = [];
    this.touch();
    this.tell('prompts');
    return step;
  }

  /** True while nothing has been done to the label since this step. */
  isNewest(step) {
    return step.label.done.at(-1) === step;
  }

  /** What the model says of slices [from, to). `mask`: {inside(index), from, to}, the object and its slices. */
  answer(step, from, to, mask) {
    if (!this.isNewest(step)) return;
    const { label } = step, steps = label.done.filter(one => one.of === step.of).map(one => one.change);
    const touched = steps.filter(({ at }) => at.length).flatMap(({ at }) => [at[0], at.at(-1) + 1]);
    const slices = [...touched.map((at, n) => (n % 2 ? Math.ceil : Math.floor)(at / this.slice)), mask.from, mask.to];
    const first = Math.max(from, Math.min(...slices)) * this.slice, last = Math.min(to, Math.max(...slices)) * this.slice;
    if (first >= last) return;
    const under = underneath(this.voxels, steps, first, last);
    this.make(step, painted(this.voxels, under, first, last, mask.inside, label.index, this.overwrite));
  }

  make(step, change) {
    step.change = joined(step.change, change);
    make(this.voxels, this.counts, change);
    this.touch();
    this.tellVoxels(change);
  }

  /** How well two masks agree on a slice (Dice). */
  agreement(k, a, b) {
    return dice(a.inside, b.inside, k * this.slice, (k + 1) * this.slice);
  }

  undo(label = this.active) {
    const step = label.done.at(-1);
    if (step) this.go(label, step, step.before, true);
    return step;
  }

  redo(label = this.active) {
    const step = label.undone.at(-1);
    if (step) this.go(label, step, step.after, false);
    return step;
  }

  go(label, step, object, back) {
    label.done = back ? label.done.slice(0, -1) : [...label.done, step];
    label.undone = back ? [...label.undone, step] : label.undone.slice(0, -1);
    label.object = object;
    make(this.voxels, this.counts, step.change, back);
    this.touch();
    this.tellVoxels(step.change);
    this.tell('prompts');
  }

  /** Take over a label map, such as one from the store: one step for each label; other labels' voxels stay. */
  load(voxels) {
    const present = new Set(voxels);
    for (const label of this.labels.filter(one => present.has(one.index))) {
      const step = this.step(label, next(label.object), null), under = new Uint8Array(voxels.length);
      const mask = at => voxels[at] === label.index;
      this.make(step, painted(this.voxels, under, 0, voxels.length, mask, label.index, this.overwrite));
    }
  }

  /** Go on from what `kept()` gave: of the steps that led there, one is left for each open object. */
  restore({ voxels, objects, labels }) {
    labels.filter(one => !this.labels.some(mine => mine.index === one.index)).forEach(label => this.add(label));
    this.voxels.set(voxels);
    this.counts.fill(0);
    for (const value of voxels) this.counts[value] += 1;
    for (const label of this.labels) {
      const { prompts = [], change = NOTHING } = objects[label.name] ?? {}, before = next(label.object);
      const after = { ...before, prompts: prompts.map(one => ({ ...one, id: (this.prompts += 1) })) };
      const done = prompts.length ? [{ label, of: after.number, before, after, change }] : [];
      Object.assign(label, { object: after, done, undone: [] });
    }
    this.touch();
    this.tell('voxels', { from: 0, to: this.grid.sizes[2] });
    this.tell('prompts');
  }

  /** What has to be kept to go on after a reload. */
  kept() {
    const open = this.labels.filter(label => label.object.prompts.length);
    const object = ({ object: { number, prompts }, done }) =>
      ({ prompts, change: done.filter(step => step.of === number).map(step => step.change).reduce(joined, NOTHING) });
    const labels = this.labels.map(({ name, index, color }) => ({ name, index, color }));
    return { voxels: this.voxels, labels, objects: Object.fromEntries(open.map(label => [label.name, object(label)])) };
  }

  touch() {
    this.changed += 1;
    this.tell('changed');
  }

  /** What was there at `changed` is safe. */
  saved(changed = this.changed) {
    this.savedAt = changed;
    this.tell('changed');
  }

  tellVoxels({ at }) {
    if (at.length) this.tell('voxels', { from: Math.floor(at[0] / this.slice), to: Math.floor(at.at(-1) / this.slice) + 1 });
  }
}
