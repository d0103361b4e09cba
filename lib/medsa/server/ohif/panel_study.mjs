// Save, what the store already holds, and the next study.

import { h } from './dom.mjs';

export function study(annotator) {
  const save = h('button.medsa-primary', { type: 'button', title: 'Save as DICOM SEG (Ctrl+S)', onclick: () => annotator.save() }, 'Save');
  const unsaved = h('span.medsa-unsaved');
  const author = h('input.medsa-author', { type: 'text', maxlength: '64', placeholder: 'your name', 'aria-label': 'Your name, as author of the label',
    title: 'The author of the saved label', value: annotator.author, onchange: () => { annotator.author = author.value.trim(); },
    onkeydown: event => { if (['Enter', 'Escape'].includes(event.key)) author.blur(); } });
  author.hidden = annotator.server.loggedIn;
  const showSave = () => {
    save.disabled = Boolean(annotator.saving) || !annotator.work;
    const work = annotator.work;
    unsaved.textContent = !work ? '' : annotator.saving ? 'saving …' : work.unsaved ? 'unsaved' : work.savedAt ? 'saved' : '';
  };
  for (const what of ['work', 'series', 'saved']) annotator.addEventListener(what, showSave);
  showSave();
  return h('section', { 'aria-label': 'Study' }, h('div.medsa-save', {}, save, unsaved, author), stored(annotator), following(annotator));
}

/** The segmentations of this series in the store, newest first, each to be loaded and corrected. */
function stored(annotator) {
  const list = h('ul.medsa-stored'), box = h('details.medsa-more', { hidden: true }, h('summary', {}, 'In the store'), list);
  const show = async () => {
    const { work } = annotator;
    if (!work) return;
    const found = (await annotator.server.segmentations(work.series).catch(() => null))?.segmentations ?? [];
    if (work !== annotator.work) return;
    box.querySelector('summary').textContent = `In the store: ${found.length}`;
    box.hidden = !found.length;
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
  const strategy = h('select', { 'aria-label': 'Strategy', onchange: () => next() });
  let skipped = [];
  const act = (label, does, primary = false) => h(primary ? 'button.medsa-primary' : 'button.medsa-plain', { type: 'button', onclick: does }, label);
  const say = (parts, ...buttons) => {
    answer.hidden = false;
    answer.replaceChildren(...parts, h('div.medsa-steps', {}, buttons));
    answer.querySelector('button')?.focus();
  };
  const close = () => { answer.hidden = true; };
  const next = async () => {
    ask.disabled = true;
    try {
      const found = await annotator.next({ strategy: strategy.value, skipped });
      if (!found?.id) return say([h('p', {}, found ? `Not now: ${found.why}.` : 'Every image has a label: there is nothing left to do.')], act('Good', close));
      offer(found);
    } catch (error) {
      annotator.trouble(error);
    } finally {
      ask.disabled = false;
    }
    return null;
  };
  const offer = found => {
    choices(found);
    const left = found.remaining === 1 ? 'One image has no label yet.' : `${found.remaining} images have no label yet.`;
    const skip = act('Skip', () => { skipped = [...skipped, found.id]; next(); }), stay = act('Stay', close);
    if (found.id === annotator.work?.series)
      return say([h('p', {}, 'This study is the next one: it has no label yet. ', left)], act('Good', close));
    const open = () => annotator.goTo(found);
    const chosen = h('p', {}, h('span.medsa-soft', {}, 'Chosen by '), found.strategies.length > 1 ? strategy : h('b', {}, found.strategy),
      `: ${found.why.replace(/\.$/, '')}. `, h('span.medsa-soft', {}, left));
    const unsaved = annotator.unsaved().length > 0;
    if (!unsaved) return say([chosen], act('Open', open, true), skip, stay);
    return say([chosen, h('p', {}, 'This study has unsaved work.')], act('Save and open', async () => { if (await annotator.save()) open(); }, true),
      act('Open, keep it here', open), skip, stay);
  };
  const choices = found => {
    if (String(found.strategies) !== String([...strategy.options].map(one => one.value)))
      strategy.replaceChildren(...found.strategies.map(name => h('option', { value: name }, name)));
    strategy.value = found.strategy;
  };
  annotator.addEventListener('next', next);
  return h('div', {}, ask, answer);
}
