// One annotator at one window: the series on the screen, the tool in the hand, and what buttons and keys do.

import { help } from './help.mjs';
import { listen } from './keyboard.mjs';
import { file } from './nrrd.mjs';
import { Prompts } from './prompts.mjs';
import { Runner } from './runner.mjs';
import { Screen, gridOf, shown } from './screen.mjs';
import { Lost, Server } from './server.mjs';
import { adopt, forget, keep, kept } from './storage.mjs';
import { Work } from './work.mjs';

const LOOK_EVERY = 400, BLANK = 50;
const BRUSH = { least: 2, most: 60 };
const KEEP_AFTER = 800, MOST_ASKED = 6;

export class Annotator extends EventTarget {
  constructor(services) {
    super();
    this.services = services;
    this.server = new Server(() => services.userAuthenticationService.getAuthorizationHeader() ?? {});
    this.runner = new Runner(this.server, () => this.screen?.window() ?? '');
    this.tool = 'include';
    this.brush = 10;
    this.works = new Map();
    this.work = this.screen = this.cursor = this.pointedAt = null;
    this.ending = new AbortController();
  }

  async begin() {
    const { signal } = this.ending;
    this.prompts = new Prompts(this);
    listen(this, signal);
    window.addEventListener('beforeunload', event => { if (this.unsaved().length) event.preventDefault(); }, { signal });
    window.addEventListener('pagehide', () => this.keepNow(), { signal });
    document.addEventListener('visibilitychange', () => { if (document.hidden) this.keepNow(); }, { signal });
    const taken = cornerstoneTools.Enums.Events.TOOL_ACTIVATED;
    cornerstone.eventTarget.addEventListener(taken, this.viewerTool);
    signal.addEventListener('abort', () => cornerstone.eventTarget.removeEventListener(taken, this.viewerTool));
    while (!signal.aborted) {
      await this.look().catch(error => this.trouble(error));
      await new Promise(done => setTimeout(done, LOOK_EVERY)); // the bundle has no one event for what it shows
    }
  }

  end() {
    this.keepNow();
    this.ending.abort();
    this.runner.end();
    this.prompts?.end();
  }

  tell(what) {
    this.dispatchEvent(new Event(what));
  }

  /** A sentence for the annotator; it stays until the next one. */
  note(text, kind = 'info') {
    this.said = { text, kind };
    this.tell('said');
  }

  trouble(error) {
    if (error instanceof Lost) this.runner.wait();
    else this.note(error.message, 'problem');
  }

  /** Somebody took one of the viewer's own tools from its toolbar. */
  viewerTool = () => { if (this.work && this.settled) this.setTool('look'); };

  /** Follow the viewer to the series that it shows. */
  async look() {
    const found = shown(this.services);
    if (!found) {
      const loaded = this.services.displaySetService.getActiveDisplaySets().length > 0;
      this.blank = loaded ? (this.blank ?? 0) + 1 : 0;
      if (this.blank === BLANK) this.note('Choose a series of slices that make a volume; others are segmented in 3D Slicer or with medsa segment.');
      return;
    }
    this.blank = 0;
    const series = found.displaySet.SeriesInstanceUID;
    if (series !== this.work?.series || found.volume !== this.screen?.volume) await this.open(found, series);
    await this.screen.follow();
    this.prompts.follow();
  }

  async open({ displaySet, volume }, series) {
    this.labelSet ??= (await this.server.labels()).labels;
    this.runner.cancel();
    const known = this.works.get(series);
    const work = known ?? new Work(series, displaySet.StudyInstanceUID, gridOf(volume), this.labelSet);
    const screen = new Screen(this.services, work, displaySet, volume);
    await screen.begin();
    Object.assign(this, { work, screen, cursor: null, settled: true });
    if (!known) {
      this.works.set(series, work);
      work.addEventListener('voxels', ({ detail: { from, to } }) => { if (this.work === work) this.screen.draw(from, to); });
      work.addEventListener('prompts', () => { if (this.work === work) { this.prompts.draw(); this.tell('prompts'); } });
      work.addEventListener('changed', () => { this.keepSoon(work); this.tell('work'); });
      await this.restore(work);
    }
    this.tell('series');
    this.tell('work');
    this.tell('prompts');
  }

  async restore(work) {
    const left = await kept(work.series, work.grid.sizes).catch(() => null);
    if (!left) return;
    work.restore(left);
    await adopt(work, left);
    work.labels.forEach(label => this.screen.colour(label));
    const label = work.labels.find(one => one.object.prompts.length) ?? work.labels.find(one => work.counts[one.index]);
    if (label) work.choose(label);
    this.note(`Your unsaved work of ${new Date(left.when).toLocaleTimeString([], { timeStyle: 'short' })} is here again.`);
  }

  // Tools and prompts

  setTool(tool) {
    this.tool = tool;
    this.prompts.draw();
    this.tell('tool');
  }

  escape() {
    if (this.cursor) this.cursor = null;
    else this.setTool('look');
    this.prompts.draw();
  }

  activate(plane) {
    this.services.viewportGridService.setActiveViewportId(plane);
  }

  place(kind, voxels, outline) {
    this.reveal();
    const step = this.work.prompt(kind, voxels, outline);
    if (this.runner.options.live) this.ask(step, voxels.at(-1)[2]);
  }

  paint(voxels, add) {
    this.reveal();
    this.runner.cancel();
    this.work.paint(voxels, add);
  }

  /** Nobody works on a label that cannot be seen. */
  reveal() {
    if (!this.work.active.visible) this.toggleLabel();
  }

  /** The brush's radius in pixels of the screen. */
  setBrush(radius) {
    this.brush = Math.max(BRUSH.least, Math.min(BRUSH.most, radius));
    this.prompts.draw();
    this.tell('tool');
  }

  removePrompt(prompt, label = this.work.active) {
    this.pointedAt = null;
    const step = this.work.remove(label, prompt);
    if (this.runner.options.live && step.after.prompts.length) this.ask(step, prompt.k);
    else this.runner.cancel();
  }

  removeNewest() {
    const newest = this.work.active.object.prompts.at(-1);
    if (newest) this.removePrompt(newest);
  }

  pointAt(prompt) {
    this.pointedAt = prompt;
    this.prompts.draw();
  }

  ask(step, k) {
    return this.runner.run(this.work, step, k).catch(error => this.trouble(error));
  }

  run() {
    const { active } = this.work, step = active.done.at(-1), newest = active.object.prompts.at(-1);
    if (!newest) this.note('Set a prompt first: click on the object, or draw a box.');
    else this.ask(step, newest.k);
  }

  toggle(name) {
    if (name === 'overwrite') this.work.overwrite = !this.work.overwrite;
    else this.runner.options[name] = !this.runner.options[name];
    this.tell('options');
  }

  // Labels, and steps there and back

  choose(label) {
    this.work.choose(label);
  }

  chooseBeside(step) {
    const { labels, active } = this.work;
    this.choose(labels[(labels.indexOf(active) + step + labels.length) % labels.length]);
  }

  toggleLabel(label = this.work.active) {
    label.visible = !label.visible;
    this.screen.colour(label);
    this.prompts.draw();
    this.tell('work');
  }

  async addLabel(name) {
    try {
      const label = await this.server.addLabel(name);
      this.labelSet = [...this.labelSet.filter(one => one.index !== label.index), label];
      for (const work of this.works.values()) if (!work.labels.some(one => one.index === label.index)) work.add(label);
      const { work } = this, mine = work.labels.find(one => one.index === label.index);
      this.screen.colour(mine);
      this.choose(mine);
    } catch (error) {
      this.trouble(error);
    }
  }

  accept() {
    this.runner.cancel();
    this.work.accept();
  }

  clear() {
    this.runner.cancel();
    this.work.clear();
  }

  undo() {
    this.runner.cancel();
    if (!this.work.undo()) this.note(`There is nothing to undo for ${this.work.active.name}.`);
  }

  redo() {
    this.runner.cancel();
    if (!this.work.redo()) this.note(`There is nothing to redo for ${this.work.active.name}.`);
  }

  // Saving, and keeping what is not saved

  /** Who annotates at this browser, where nobody logs in. */
  get author() {
    return localStorage.getItem('medsa-author') ?? '';
  }

  set author(name) {
    localStorage.setItem('medsa-author', name);
  }

  unsaved() {
    return [...this.works.values()].filter(work => work.unsaved);
  }

  async save() {
    const { work } = this, { changed } = work, present = work.labels.filter(label => work.counts[label.index]);
    if (!present.length) {
      this.note('There is nothing to save yet: no label has a voxel.');
      return false;
    }
    if (this.saving) return false;
    this.saving = true;
    this.note('Saving …');
    this.tell('work');
    try {
      const unknown = present.filter(label => !this.labelSet.some(one => one.name === label.name));
      for (const { name } of unknown) this.labelSet.push(await this.server.addLabel(name));
      await this.server.save(work.series, await file(work.grid, work.voxels), present, this.author);
      work.saved(changed);
      if (!work.unsaved) await forget(work.series);
      const names = present.map(label => `${label.name} ${millilitres(work.millilitres(label))}`).join(', ');
      this.note(`Saved as DICOM SEG in the store: ${names}.`, 'good');
      this.tell('saved');
      return true;
    } catch (error) {
      if (error instanceof Lost) {
        this.note('Not saved: the server does not answer. Your work is kept in this browser; save again when the server is back.', 'problem');
        this.runner.wait();
      } else this.note(`Not saved: ${error.message}`, 'problem');
      return false;
    } finally {
      this.saving = false;
      this.tell('work');
    }
  }

  async load(segmentation) {
    try {
      const { work } = this, { mask, params } = await this.server.segmentation(segmentation.id, work.series);
      const voxels = new Uint8Array(work.voxels.length), clean = !work.unsaved && !work.counts.slice(1).some(Boolean);
      voxels.set(mask.data, (params.first_slice ?? 0) * work.slice);
      for (const label of params.labels.filter(one => !work.labels.some(mine => mine.index === one.index)))
        this.screen.colour(work.add(label));
      this.runner.cancel();
      work.load(voxels);
      if (clean) work.saved();
      const first = work.labels.find(label => work.counts[label.index]);
      if (first) {
        this.choose(first);
        this.screen.jump(work.somewhere(first));
      }
      this.note(`Loaded: ${segmentation.labels.join(', ')}. Prompts add to it; Save writes a new label, the old one stays.`);
    } catch (error) {
      this.trouble(error);
    }
  }

  keepSoon(work) {
    clearTimeout(work.keeping);
    work.keeping = setTimeout(() => this.keepNow(work), KEEP_AFTER);
  }

  async keepNow(only) {
    for (const work of only ? [only] : this.unsaved())
      if (work.unsaved) await keep(work).catch(() => this.note('This browser cannot keep unsaved work: save often.', 'problem'));
  }

  // The next study, and help

  /**
   * {id, StudyInstanceUID, strategy, why, remaining, strategies}: the next image, another one than that on the screen and than
   * what was `skipped` if there is one; null when every image has a label. Of several strategies the first, unless one is named.
   */
  async next({ strategy = '', skipped = [] } = {}) {
    const info = await this.server.info(), strategies = Object.keys(info.strategies), name = strategy || strategies[0];
    const avoided = [this.work?.series, ...skipped], { total = 0, completed = 0 } = info.datastore;
    let found = {};
    for (let asked = 0; asked < MOST_ASKED && !(found.id && !avoided.includes(found.id)); asked += 1) {
      const answer = await this.server.next(name, avoided);
      if (!answer.id) return answer.why ? answer : null;
      if (answer.id !== this.work?.series || !found.id) found = answer;
    }
    return { why: info.strategies[name].description, remaining: total - completed, ...found, strategy: name, strategies };
  }

  async goTo({ id, StudyInstanceUID }) {
    await this.keepNow();
    this.ending.abort();
    window.location.assign(`${window.location.pathname}?StudyInstanceUIDs=${StudyInstanceUID}&medsa=${encodeURIComponent(id)}`);
  }

  askNext() {
    this.tell('next');
  }

  help() {
    help(this);
  }
}

export const millilitres = value => `${value >= 100 ? value.toFixed(0) : value >= 1 ? value.toFixed(1) : value.toFixed(2)} ml`;
