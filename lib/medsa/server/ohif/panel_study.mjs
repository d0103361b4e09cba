// Save, what the store already holds, and the next study.

import { h } from './dom.mjs';

export function study(annotator) {
  const save = h('button.medsa-primary', { type: 'button', title: 'Save as DICOM SEG (Ctrl+S)', onclick: () => annotator.save() }, 'Save');
  const unsaved = h('span.medsa-unsaved');
  const showSave = () => {
    save.disabled = Boolean(annotator.saving) || !annotator.work;
    const work = annotator.work;
    unsaved.textContent = !work ? '' : annotator.saving ? 'saving …' : work.unsaved ? 'unsaved' : work.savedAt ? 'saved' : '';
  };
  for (const what of ['work', 'series', 'saved']) annotator.addEventListener(what, showSave);
  showSave();
  return h('section', { 'aria-label': 'Study' }, h('div.medsa-save', {}, save, unsaved), stored(annotator), following(annotator));
}

/** The segmentations of this series in the store, newest first, each to be loaded and corrected. */
function stored(annotator) {
  const list = h('ul.medsa-stored'), box = h('details.medsa-more', {}, h('summary', {}, 'In the store'), list);
  const show = async () => {
    const { work } = annotator;
    if (!work) return;
    const found = (await annotator.server.segmentations(work.series).catch(() => null))?.segmentations ?? [];
    if (work !== annotator.work) return;
    box.querySelector('summary').textContent = found.length ? `In the store: ${found.length}` : 'Nothing in the store yet';
    list.replaceChildren(...found.map(one => h('li', {},
      h('span', {}, `${new Date(one.when).toLocaleString([], { dateStyle: 'medium', timeStyle: 'short' })} · ${one.human ? '' : 'by a model: '}${one.labels.join(', ')}`),
      h('button.medsa-plain', { type: 'button', 'aria-label': `Load the labels ${one.labels.join(', ')}`, onclick: () => annotator.load(one) }, 'Load'))));
  };
  for (const what of ['series', 'saved']) annotator.addEventListener(what, show);
  show();
  return box;
}

/** Which study comes next and why; nothing is opened while work is unsaved without asking. */
function following(annotator) {
  const answer = h('div.medsa-next', { 'aria-live': 'polite', hidden: true });
  const ask = h('button.medsa-plain', { type: 'button', title: 'Ask for the next study (N)', onclick: () => next() }, 'Next study');
  const act = (label, does, primary = false) => h(primary ? 'button.medsa-primary' : 'button.medsa-plain', { type: 'button', onclick: does }, label);
  const say = (sentence, ...buttons) => {
    answer.hidden = false;
    answer.replaceChildren(h('p', {}, sentence), h('div.medsa-steps', {}, buttons));
    answer.querySelector('button')?.focus();
  };
  const close = () => { answer.hidden = true; };
  const next = async () => {
    ask.disabled = true;
    try {
      const found = await annotator.next();
      if (!found) return say('Every image has a label: there is nothing left to do.', act('Good', close));
      const open = () => annotator.goTo(found);
      const why = `${found.why}. ${found.remaining} ${found.remaining === 1 ? 'image has' : 'images have'} no label yet.`;
      const skip = act('Skip', next), stay = act('Stay', close);
      if (!annotator.unsaved().length) return say(why, act('Open', open, true), skip, stay);
      return say(`${why} This study has unsaved work.`, act('Save and open', async () => { if (await annotator.save()) open(); }, true),
        act('Open, keep it here', open), skip, stay);
    } catch (error) {
      return annotator.trouble(error);
    } finally {
      ask.disabled = false;
    }
  };
  annotator.addEventListener('next', next);
  return h('div', {}, ask, answer);
}
