// Shortcuts.

import * as cursor from './cursor.mjs';

const TYPING = 'input:not([type=checkbox], [type=range]), textarea, select, [contenteditable=true]';
const PRESSING = 'button, a, input, select, summary';
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** [{keys, shown, what, act, group}]: everything the panel answers to. */
export function shortcuts(annotator) {
  const tool = name => () => annotator.setTool(name);
  const entry = (group, shown, what, act, ...keys) => ({ group, shown, what, act, keys });
  return [
    entry('Prompts', 'A', 'Include: click the object, or scribble along it', tool('include'), 'a'),
    entry('Prompts', 'S', 'Exclude: click what does not belong, or scribble', tool('exclude'), 's'),
    entry('Prompts', 'D', 'Box: drag from corner to corner', tool('box'), 'd'),
    entry('Prompts', 'F', 'Lasso: draw around the object; with Shift around what does not belong', tool('lasso'), 'f'),
    entry('Prompts', 'Esc', 'Look around: the viewer\'s own tools', () => annotator.escape(), 'Escape'),
    entry('Prompts', 'Backspace', 'Remove the newest prompt', () => annotator.removeNewest(), 'Backspace', 'Delete'),
    entry('Prompts', 'C', 'Keyboard cursor: arrows move it, Shift+arrows faster, Page keys change the slice, Space sets the prompt', () => cursor.toggle(annotator), 'c'),
    entry('By hand', 'B, E', 'Brush and eraser: change the mask without the model; Shift turns one into the other', tool('brush'), 'b'),
    { ...entry('', '', '', tool('erase'), 'e'), hidden: true },
    entry('By hand', '− and +', 'A smaller, a larger brush', () => annotator.setBrush(annotator.brush / 1.25), '-'),
    { ...entry('', '', '', () => annotator.setBrush(annotator.brush * 1.25), '+', '='), hidden: true },
    entry('Masks', 'Enter', 'Accept the mask: the next prompts are about another object', () => annotator.accept(), 'Enter'),
    entry('Masks', 'G', 'Run the model now', () => annotator.run(), 'g'),
    entry('Masks', 'L', 'Live: run after each prompt', () => annotator.toggle('live'), 'l'),
    entry('Masks', 'V', 'Follow the object through the volume', () => annotator.toggle('volume'), 'v'),
    entry('Masks', 'Ctrl+Z', 'Undo, for this label', () => annotator.undo(), 'ctrl+z'),
    entry('Masks', 'Ctrl+Shift+Z', 'Redo', () => annotator.redo(), 'ctrl+shift+z', 'ctrl+y'),
    entry('Labels', '[ and ]', 'The label before and after', () => annotator.chooseBeside(-1), '['),
    { ...entry('', '', '', () => annotator.chooseBeside(1), ']'), hidden: true },
    entry('Labels', 'H', 'Hide and show this label', () => annotator.toggleLabel(), 'h'),
    entry('Labels', 'O', 'Overwrite other labels, or leave them', () => annotator.toggle('overwrite'), 'o'),
    entry('Study', 'Ctrl+S', 'Save', () => annotator.save(), 'ctrl+s'),
    entry('Study', 'N', 'The next study', () => annotator.askNext(), 'n'),
    entry('Study', '?', 'This list', () => annotator.help(), '?', 'shift+?'),
  ];
}

/** Name of a key press as in the list above. */
function pressed(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const command = event.ctrlKey || event.metaKey;
  const shift = event.shiftKey && (command || key === '?');
  return `${command ? 'ctrl+' : ''}${shift ? 'shift+' : ''}${key}`;
}

/** Listen until `signal` aborts. */
export function listen(annotator, signal) {
  const acts = new Map(shortcuts(annotator).flatMap(({ keys, act }) => keys.map(key => [key, act])));
  window.addEventListener('keydown', event => {
    const { target } = event, key = pressed(event);
    if (!annotator.work || event.altKey || target.closest?.('dialog[open]')) return;
    if (target.matches?.(TYPING) && !key.startsWith('ctrl+s')) return;
    if (target.matches?.(PRESSING) && ['Enter', ' '].includes(key)) return;
    const act = moved(annotator, event) ?? acts.get(key);
    if (!act) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    act();
  }, { capture: true, signal });
}

/** What a key means while the keyboard cursor is out. */
function moved(annotator, event) {
  if (!annotator.cursor) return null;
  const step = event.shiftKey ? 10 : 1;
  if (ARROWS[event.key]) return () => cursor.move(annotator, ARROWS[event.key].map(value => value * step), 0);
  if (event.key === 'PageUp') return () => cursor.move(annotator, [0, 0], 1);
  if (event.key === 'PageDown') return () => cursor.move(annotator, [0, 0], -1);
  return event.key === ' ' ? () => cursor.place(annotator, event.shiftKey) : null;
}
