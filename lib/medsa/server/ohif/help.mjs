// The "?" overlay: every shortcut, in the words of the panel.

import { h } from './dom.mjs';
import { shortcuts } from './keyboard.mjs';

export function help(annotator) {
  const groups = Object.entries(Object.groupBy(shortcuts(annotator).filter(one => !one.hidden), one => one.group));
  const close = h('button', { type: 'button', onclick: () => dialog.close() }, 'Close');
  const dialog = h('dialog.medsa-help', { 'aria-label': 'Keyboard shortcuts', onclose: () => dialog.remove() },
    h('h2', {}, 'How to work here'),
    h('p', {}, 'Choose a label, click the object: the mask comes at once. Click what is missing; Shift+click what is too much. '
      + 'Drag to scribble several points. Alt+click removes a prompt. The wheel, the middle and the right button do what they always do.'),
    h('div.medsa-keys', {}, groups.map(([name, entries]) => h('section', {}, h('h3', {}, name),
      h('dl', {}, entries.flatMap(({ shown, what }) => [h('dt', {}, h('kbd', {}, shown)), h('dd', {}, what)]))))),
    close);
  dialog.addEventListener('keydown', event => {
    event.stopPropagation(); // the viewer's own shortcuts would keep Escape from closing it
    if (['?', 'Escape'].includes(event.key)) dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
  close.focus();
}
