// Prompts to masks: the slice at once, the volume after it; a newer prompt ends the older request.

import { offset } from './nrrd.mjs';
import { Lost } from './server.mjs';

const OFF_GRID = 0.3;
const PATIENCE = 2000, COUNT_EVERY = 1000;

export class Runner extends EventTarget {
  /** `look()` gives the window on the screen as "low,high", or "". */
  constructor(server, look) {
    super();
    this.server = server;
    this.look = look;
    this.options = { live: true, volume: true, asOnScreen: true, adapter: '' };
    this.state = { busy: '', since: 0, done: 0, slice: 0, volume: 0, agreement: null, adapter: '', problem: '', lost: false };
  }

  set(state) {
    Object.assign(this.state, state);
    this.dispatchEvent(new Event('state'));
  }

  /** End what is running; its answer is not wanted any more. */
  cancel() {
    this.running?.abort();
    this.running = null;
    this.waiting = null;
    this.set({ busy: '' });
  }

  /** Ask for the mask of a step's object: slice k first. Resolves when all answers are drawn. */
  async run(work, step, k) {
    this.cancel();
    const running = (this.running = new AbortController());
    const { prompts } = step.after, here = prompts.filter(one => one.k === k);
    if (!prompts.some(one => one.kind !== 'exclude')) {
      this.set({ problem: prompts.length ? 'Include something first: click on the object, or draw a box.' : '' });
      return;
    }
    this.set({ problem: '', slice: 0, volume: 0, agreement: null });
    try {
      let flat = null;
      if (here.some(one => one.kind !== 'exclude')) {
        flat = await this.ask('medsa_2d', work, step, here, { slice: k }, running);
        if (running !== this.running) return;
        work.answer(step, k, k + 1, flat);
      }
      if (this.options.volume && work.grid.sizes[2] > 1) {
        const deep = await this.ask('medsa_3d', work, step, prompts, {}, running);
        if (running !== this.running) return;
        work.answer(step, 0, work.grid.sizes[2], deep);
        if (flat) this.set({ agreement: work.agreement(k, flat, deep) });
      }
      this.set({ busy: '' });
    } catch (error) {
      if (running !== this.running || error.name === 'AbortError') return;
      this.set({ busy: '', problem: error instanceof Lost ? '' : error.message });
      if (error instanceof Lost) this.wait({ work, step, k });
    }
  }

  async ask(model, work, step, prompts, where, running) {
    const what = model === 'medsa_2d' ? 'slice' : 'volume', since = performance.now();
    this.set({ busy: what, since, done: 0 });
    const points = kind => prompts.filter(one => one.kind === kind).flatMap(one => one.points);
    const box = prompts.findLast(one => one.kind === 'box')?.points;
    const params = {
      ...where, label: step.label.name, foreground: points('include'), background: points('exclude'),
      ...(box && { box }), ...(this.options.adapter && { adapter: this.options.adapter }),
      ...(this.options.asOnScreen && this.look() && { window: this.look() }),
    };
    const asking = this.server.infer(model, work.series, params, running.signal);
    if (what === 'volume') this.count(work.series, step.label.name, running);
    const answer = await asking;
    const first = answer.params.first_slice ?? 0, { mask } = answer;
    if (mask.sizes[0] !== work.grid.sizes[0] || mask.sizes[1] !== work.grid.sizes[1] || offset(mask, work.grid, first) > OFF_GRID)
      throw new Error('The viewer shows this series in another place than it has (a tilted gantry, or uneven slices): '
        + 'masks cannot be drawn on it. Segment it in 3D Slicer, or with medsa segment.');
    const ms = performance.now() - since;
    this.set({ [what]: ms, adapter: answer.params.options?.adapter ?? '', problem: answer.params.warnings?.[0] ?? '', lost: false });
    const start = first * work.slice, end = start + mask.data.length;
    const inside = index => index >= start && index < end && mask.data[index - start] > 0;
    return { inside, from: first, to: first + mask.sizes[2] };
  }

  /** Ask how many slices are done until the answer is there. */
  async count(series, label, running) {
    while (running === this.running && this.state.busy === 'volume') {
      const { done } = await this.server.progress(series, label).catch(() => ({ done: 0 }));
      if (running === this.running && this.state.busy === 'volume' && done) this.set({ done });
      await new Promise(later => setTimeout(later, COUNT_EVERY));
    }
  }

  /** Until the server is there again; then `pending` is asked anew, if it is still wanted. */
  async wait(pending = null) {
    this.waiting = pending ?? this.waiting;
    if (this.state.lost) return;
    this.set({ lost: true });
    while (this.state.lost) {
      await new Promise(done => setTimeout(done, PATIENCE));
      if (this.ended) return;
      try {
        await this.server.info();
        this.set({ lost: false });
      } catch (error) {
        if (!(error instanceof Lost)) this.set({ lost: false });
      }
    }
    this.dispatchEvent(new Event('back'));
    const wanted = this.waiting;
    this.waiting = null;
    if (wanted?.work.isNewest(wanted.step)) await this.run(wanted.work, wanted.step, wanted.k);
  }

  end() {
    this.ended = true;
    this.cancel();
  }
}
