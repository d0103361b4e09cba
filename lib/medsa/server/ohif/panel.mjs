// The panel beside the image: state, tools, prompts; below them labels, the study and the model.

import { h, icon } from './dom.mjs';
import { labels } from './panel_labels.mjs';
import { model } from './panel_model.mjs';
import { study } from './panel_study.mjs';

const TOOLS = [
  ['include', 'Include', 'A', 'M8 3v10M3 8h10'],
  ['exclude', 'Exclude', 'S', 'M3 8h10'],
  ['box', 'Box', 'D', 'M3 4h10v8h-10z'],
  ['lasso', 'Lasso', 'F', 'M8 3c3 0 5.5 1.3 5.5 3.4S11 10 8 10 2.5 8.6 2.5 6.4 5 3 8 3zM5 9.5c-1 1.5-.5 3 1 3.5'],
  ['brush', 'Brush', 'B', 'M13 3l-6 6M7.5 8.5c-2-.5-3.5.7-3.5 2.5 0 1-.6 1.6-1.5 2 3 .6 6-.6 5.7-3z'],
  ['erase', 'Erase', 'E', 'M6 12.5l-3.5-3.5 6-6 4.5 4.5-5 5zM5.5 6l4.5 4.5M6 12.5h7'],
  ['look', 'Look', 'Esc', 'M8 2.5v11M2.5 8h11M6 4.5l2-2 2 2M6 11.5l2 2 2-2M4.5 6l-2 2 2 2M11.5 6l2 2-2 2'],
];
const OPTIONS = [
  ['live', 'Live', 'Run after each prompt (L)'],
  ['volume', 'Volume', 'Follow the object through all slices (V)'],
  ['overwrite', 'Overwrite', 'New masks take voxels from other labels (O)'],
];

export function panel(annotator) {
  return h('div.medsa-panel', {},
    stateLine(annotator), tools(annotator), labels(annotator), prompts(annotator), study(annotator), model(annotator));
}

/** One line: what it is doing, how long that took, how slice and volume agree, which adapter answered. */
function stateLine(annotator) {
  const { runner } = annotator;
  const dot = h('i.medsa-dot'), text = h('span.medsa-state-text'), said = h('p.medsa-said', { role: 'status' });
  const show = () => {
    const { state } = runner, word = state.lost ? 'lost' : state.busy ? 'busy' : 'ready';
    dot.className = `medsa-dot medsa-${word}`;
    text.textContent = state.lost ? 'The server does not answer. Your work is kept here; it goes on when the server is back.' : line(state);
    const problem = !state.lost && state.problem, shown = problem ? { text: problem, kind: 'problem' } : annotator.said;
    said.textContent = shown?.text ?? '';
    said.className = `medsa-said medsa-${shown?.kind ?? 'info'}`;
    said.hidden = !shown?.text;
  };
  runner.addEventListener('state', show);
  for (const what of ['said', 'series']) annotator.addEventListener(what, show);
  const ticking = setInterval(() => { if (runner.state.busy) show(); }, 500);
  annotator.ending.signal.addEventListener('abort', () => clearInterval(ticking));
  show();
  return h('header', {}, h('div.medsa-state', {}, dot, text,
    h('button.medsa-round', { type: 'button', 'aria-label': 'Keyboard shortcuts', title: 'Keyboard shortcuts (?)', onclick: () => annotator.help() }, '?')), said);
}

const time = ms => (ms >= 1000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms)} ms`);

function line({ busy, since, done, slice, volume, agreement, adapter }) {
  const parts = [];
  if (slice) parts.push(`slice ${time(slice)}`);
  if (volume) parts.push(`volume ${time(volume)}`);
  if (busy) parts.push(`${busy} … ${done ? `${done} slices, ` : ''}${Math.round((performance.now() - since) / 1000)} s`);
  if (agreement !== null) parts.push(`agree ${agreement.toFixed(2)}`);
  if (adapter) parts.push(adapter);
  return parts.join(' · ') || 'Ready: choose a label, click the object';
}

function tools(annotator) {
  const { runner } = annotator;
  const choices = TOOLS.map(([name, label, key, path]) =>
    h('button.medsa-tool', { type: 'button', title: `${label} (${key})`, onclick: () => annotator.setTool(name) }, icon(path), h('span', {}, label), h('kbd', {}, key)));
  const switches = OPTIONS.map(([name, label, title]) =>
    h('button.medsa-switch', { type: 'button', role: 'switch', title, onclick: () => annotator.toggle(name) }, label));
  const size = h('input.medsa-size', { type: 'range', min: '2', max: '60', title: 'Size of the brush (− and +)', 'aria-label': 'Size of the brush',
    oninput: () => annotator.setBrush(Number(size.value)) });
  const run = h('button.medsa-run', { type: 'button', title: 'Run the model now (G)', onclick: () => annotator.run() }, 'Run');
  const show = () => {
    choices.forEach((button, n) => button.setAttribute('aria-pressed', TOOLS[n][0] === annotator.tool));
    switches.forEach((button, n) => button.setAttribute('aria-checked', Boolean({ ...runner.options, overwrite: annotator.work?.overwrite }[OPTIONS[n][0]])));
    run.hidden = runner.options.live;
    size.value = annotator.brush;
    size.style.visibility = ['brush', 'erase'].includes(annotator.tool) ? '' : 'hidden';
  };
  annotator.addEventListener('tool', show);
  annotator.addEventListener('options', show);
  annotator.addEventListener('series', show);
  show();
  return h('div', {}, h('div.medsa-tools', { role: 'group', 'aria-label': 'Tools' }, choices, size), h('div.medsa-options', {}, switches, run));
}

/** The prompts of the open object, each with a button that takes it away, and the way back and forth. */
function prompts(annotator) {
  const list = h('ul.medsa-prompt-list', { 'aria-label': 'Prompts of this object' });
  const button = (label, title, act) => h('button.medsa-plain', { type: 'button', title, onclick: act }, label);
  const undo = button('Undo', 'Undo (Ctrl+Z)', () => annotator.undo()), redo = button('Redo', 'Redo (Ctrl+Shift+Z)', () => annotator.redo());
  const accept = button('Accept', 'Leave this mask and begin another object of the label (Enter)', () => annotator.accept());
  const clear = button('Clear', 'Take away everything of this label', () => annotator.clear());
  const show = () => {
    const label = annotator.work?.active;
    undo.disabled = !label?.done.length;
    redo.disabled = !label?.undone.length;
    accept.disabled = !label?.object.prompts.length;
    clear.disabled = !label || !(annotator.work.counts[label.index] || label.object.prompts.length);
    list.replaceChildren(...(label?.object.prompts ?? []).map(prompt => entry(annotator, label, prompt)));
    list.hidden = !label?.object.prompts.length;
  };
  for (const what of ['prompts', 'work', 'series']) annotator.addEventListener(what, show);
  show();
  return h('section', { 'aria-label': 'Object' }, h('div.medsa-steps', {}, undo, redo, accept, clear), list);
}

const SIGN = { include: '+', exclude: '−', box: '□' };

function entry(annotator, label, prompt) {
  const { kind, points, outline, k } = prompt, [i, j] = points[0], slice = `slice ${annotator.screen.numberOf(k)}`;
  const many = outline?.length ? ' · lasso' : kind !== 'box' && points.length > 1 ? ` · ${points.length} points` : '';
  const name = `${kind} at ${i}, ${j}, ${slice}`;
  const point = on => () => annotator.pointAt(on ? prompt : null);
  return h('li', { onmouseenter: point(true), onmouseleave: point(false) },
    h('button.medsa-where', { type: 'button', title: `Show the ${name}`, onclick: () => annotator.screen.jump(points.at(-1)) },
      h(`b.medsa-sign.medsa-${kind}`, { style: `--label: rgb(${label.color})` }, SIGN[kind]), `${i}, ${j} · ${slice}${many}`),
    h('button.medsa-round', { type: 'button', 'aria-label': `Remove the ${name}`, title: 'Remove', onclick: () => annotator.removePrompt(prompt, label) }, '×'));
}
