// Requests to the server this page came from, each answered with data or with a sentence for the annotator.

import { parse } from './nrrd.mjs';

const ROOT = new URL('../..', import.meta.url);

/** Nobody answered: the server is down, or out of reach. */
export class Lost extends Error {}

/** The server's sentence about what it cannot do. */
export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** This window's own id, which a reload keeps: the server tells windows of one person apart by it. */
export const WINDOW = (() => {
  const made = Array.from(crypto.getRandomValues(new Uint8Array(12)), byte => byte.toString(16).padStart(2, '0')).join('');
  const kept = sessionStorage.getItem('medsa-window') ?? made;
  sessionStorage.setItem('medsa-window', kept);
  return kept;
})();

export class Server {
  /** `login()` gives the viewer's authorization headers. */
  constructor(login = () => ({})) {
    this.login = login;
  }

  async ask(path, options = {}) {
    let response;
    try {
      response = await fetch(new URL(path, ROOT), { ...options, headers: { ...this.login(), ...options.headers } });
    } catch (error) {
      throw error.name === 'AbortError' ? error : new Lost('The server does not answer.');
    }
    if (response.ok) return response;
    const told = await response.json().catch(() => null);
    if (!told && [502, 503, 504].includes(response.status)) throw new Lost('The server does not answer.');
    const detail = typeof told?.detail === 'string' ? told.detail : `the server answers ${response.status}`;
    throw new Refused(detail, response.status);
  }

  async json(path, options) {
    return (await this.ask(path, options)).json();
  }

  send(path, value, method = 'POST') {
    return this.json(path, { method, body: JSON.stringify(value ?? {}), headers: { 'Content-Type': 'application/json' } });
  }

  info = () => this.json('info/');
  status = () => this.json('medsa/status');
  labels = () => this.json('medsa/labels');
  addLabel = name => this.send('medsa/labels', { name });
  train = () => this.send('train/medsa?enqueue=true');
  stopTraining = () => this.json('train/', { method: 'DELETE' });
  next = (strategy, skip) => this.send(`activelearning/${encodeURIComponent(strategy)}`, { client_id: WINDOW, skip });
  progress = (series, label) => this.json(`medsa/progress?${new URLSearchParams({ image: series, label, client_id: WINDOW })}`);
  segmentations = series => this.json(`medsa/segmentations?image=${series}`);

  /** {params, mask}: what `model` answers; the mask covers the slices from `params.first_slice` on. */
  async infer(model, series, params, signal) {
    const body = new FormData();
    body.set('params', JSON.stringify({ ...params, client_id: WINDOW, crop: true, result_extension: '.nrrd' }));
    const response = await this.ask(`infer/${model}?image=${series}`, { method: 'POST', body, signal });
    return masked(await response.formData());
  }

  /** A segmentation of the store as a label map of the server's label indices, cropped like an answer. */
  async segmentation(id, series) {
    return masked(await (await this.ask(`medsa/segmentations/${id}?image=${series}`)).formData());
  }

  /** True when the viewer sends a login, whose name is the author of what is saved. */
  get loggedIn() {
    return Object.keys(this.login()).length > 0;
  }

  /** Save a label map; `labels`: those in it; `author` counts where nobody logs in. */
  async save(series, file, labels, author) {
    const body = new FormData();
    body.set('label', file, 'label.nrrd');
    body.set('params', JSON.stringify({
      label_info: labels.map(({ name, index }) => ({ name, idx: index })), model: 'in OHIF', client_id: WINDOW, ...(author && { user: author }),
    }));
    return this.json(`datastore/label?image=${series}&tag=final`, { method: 'PUT', body });
  }
}

async function masked(form) {
  return { params: JSON.parse(form.get('params')), mask: parse(await form.get('image').arrayBuffer()) };
}
