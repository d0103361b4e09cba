// The list of labels: colour, name, volume, an eye; a field that finds one, or makes a new one.

import { millilitres } from './annotator.mjs';
import { h, icon } from './dom.mjs';

const EYE = 'M1.5 8c3-5 10-5 13 0-3 5-10 5-13 0zM8 6.2a1.8 1.8 0 1 0 .01 0z';
const SHUT = 'M1.5 8c3-5 10-5 13 0-3 5-10 5-13 0zM3 13.5l10-11';

export function labels(annotator) {
  const list = h('ul.medsa-labels', { 'aria-label': 'Labels' });
  const find = h('input', { type: 'search', placeholder: 'Find or add a label', 'aria-label': 'Find or add a label', oninput: () => show(),
    onkeydown: event => { if (event.key === 'Enter') taken(); if (event.key === 'Escape') { find.value = ''; find.blur(); show(); } } });
  const make = h('button.medsa-plain', { type: 'button', hidden: true, onclick: () => taken() }, 'Add');
  let rows = new Map();

  const found = () => {
    const wanted = find.value.trim().toLowerCase();
    return (annotator.work?.labels ?? []).filter(label => label.name.toLowerCase().includes(wanted));
  };
  const taken = async () => {
    const name = find.value.trim(), exact = annotator.work.labels.find(label => label.name.toLowerCase() === name.toLowerCase());
    if (!name) return;
    if (exact ?? found()[0]) annotator.choose(exact ?? found()[0]);
    else await annotator.addLabel(name);
    find.value = '';
    find.blur();
    show();
  };
  const show = () => {
    const shown = found();
    make.hidden = !find.value.trim() || shown.length > 0;
    if ([...rows.keys()].length !== shown.length || shown.some(label => !rows.has(label))) {
      rows = new Map(shown.map(label => [label, row(annotator, label)]));
      list.replaceChildren(...[...rows.values()].map(one => one.element));
    }
    rows.forEach(one => one.show());
  };
  for (const what of ['work', 'series', 'options', 'saved']) annotator.addEventListener(what, show);
  annotator.addEventListener('prompts', () => { show(); rows.get(annotator.work.active)?.element.scrollIntoView({ block: 'nearest' }); });
  show();
  return h('section', { 'aria-label': 'Labels' }, h('div.medsa-find', {}, find, make), list);
}

function row(annotator, label) {
  const volume = h('span.medsa-volume');
  const choose = h('button.medsa-label', { type: 'button', onclick: () => annotator.choose(label) },
    h('i.medsa-swatch', { style: `background: rgb(${label.color})` }), h('span.medsa-name', {}, label.name), volume);
  const eye = h('button.medsa-round', { type: 'button', onclick: () => annotator.toggleLabel(label) });
  const show = () => {
    const { work } = annotator;
    choose.setAttribute('aria-pressed', work.active === label);
    volume.textContent = work.counts[label.index] ? millilitres(work.millilitres(label)) : '';
    eye.setAttribute('aria-label', `${label.visible ? 'Hide' : 'Show'} ${label.name}`);
    eye.title = `${label.visible ? 'Hide' : 'Show'} (H)`;
    if (eye.dataset.visible !== String(label.visible)) eye.replaceChildren(icon(label.visible ? EYE : SHUT));
    eye.dataset.visible = label.visible;
  };
  return { element: h('li', {}, choose, eye), show };
}
