// Which adapter answers, how good it is, and how the next one comes about.

import { h } from './dom.mjs';

const CALM = 30000, BUSY = 2000;
const FIGURES = [['1 pt', '1 click'], ['3 pts', '3 clicks'], ['10 pts', '10 clicks'], ['box', 'box']];

export function model(annotator) {
  const { runner, server } = annotator;
  const adapter = h('select', { 'aria-label': 'Adapter version', onchange: () => { runner.options.adapter = adapter.value === 'current' ? '' : adapter.value; } });
  const seen = h('input', { type: 'checkbox', checked: runner.options.asOnScreen, onchange: () => { runner.options.asOnScreen = seen.checked; } });
  const facts = h('dl.medsa-facts'), bar = h('progress', { max: 1, hidden: true, 'aria-label': 'Training' }), now = h('p.medsa-now');
  const start = h('button.medsa-plain', { type: 'button', onclick: () => act(server.train) }, 'Train now');
  const stop = h('button.medsa-plain', { type: 'button', hidden: true, onclick: () => act(server.stopTraining) }, 'Stop');
  const title = h('summary', {}, 'Model');
  const box = h('details.medsa-more', { ontoggle: () => show() }, title,
    h('label.medsa-row', {}, 'Answers', adapter), h('label.medsa-row', {}, 'Sees the window on the screen', seen),
    facts, now, bar, h('div.medsa-steps', {}, start, stop));
  let waiting = 0;

  const act = async what => {
    try { await what(); } catch (error) { annotator.trouble(error); }
    show();
  };
  const show = async () => {
    clearTimeout(waiting);
    let busy = false;
    try {
      const [status, info] = await Promise.all([server.status(), adapter.options.length && !box.open ? null : server.info()]);
      if (info) choices(info.models.medsa_2d.config.adapter);
      busy = tell(status);
    } catch (error) {
      now.textContent = error.message;
    }
    if (!annotator.ending.signal.aborted) waiting = setTimeout(show, busy ? BUSY : CALM);
  };
  const choices = names => {
    if (String(names) === String([...adapter.options].map(one => one.value))) return;
    adapter.replaceChildren(...names.map(name => h('option', { value: name }, NAMED[name] ?? name)));
    adapter.value = runner.options.adapter || 'current';
  };
  const tell = status => {
    const round = status.round, running = round?.status === 'RUNNING', decision = status.last_decision;
    title.textContent = `Model: ${status.version}`;
    const told = [
      ['Labels', `${status.labels}, ${status.new_labels} new since the last training`],
      ...(status.made ? [['Made', new Date(status.made).toLocaleString([], { dateStyle: 'medium', timeStyle: 'short' })]] : []),
      ...FIGURES.flatMap(([name, shown]) => {
        const value = status.figures[`candidate, held-out, ${name}`];
        return Number.isFinite(value) ? [[`Dice, ${shown}`, value.toFixed(3)]] : [];
      }),
      ...(decision ? [['Last result', said(decision)]] : []),
      ...(status.problem ? [['Problem', status.problem]] : []),
    ];
    facts.replaceChildren(...told.flatMap(([name, value]) => [h('dt', {}, name), h('dd', {}, value)]));
    bar.hidden = !running;
    if (running && round.progress) bar.value = round.progress.part; else bar.removeAttribute('value');
    now.textContent = round ? doing(round) : '';
    [start.hidden, stop.hidden] = [running, !running];
    return running;
  };
  for (const what of ['series', 'saved']) annotator.addEventListener(what, show);
  runner.addEventListener('back', show);
  annotator.ending.signal.addEventListener('abort', () => clearTimeout(waiting));
  show();
  return h('section', { 'aria-label': 'Model' }, box);
}

const NAMED = { current: 'the served version', none: 'the backbone alone' };

/** What a round of training is at, or how it ended. */
function doing({ status, progress, details = [] }) {
  if (status === 'RUNNING') return progress ? `${progress.what} … ${Math.round(100 * progress.part)} %` : 'The training begins …';
  if (status === 'STOPPED') return 'The training was stopped.';
  return details.at(-1) ?? (status === 'ERROR' ? 'The training failed.' : '');
}

function said({ event, promoted, version, reasons = [] }) {
  const what = event === 'decided' ? (promoted ? 'is served now' : 'was refused') : event;
  return `${version ?? ''} ${what}${reasons.length ? `: ${reasons.join('; ')}` : ''}`.trim();
}
