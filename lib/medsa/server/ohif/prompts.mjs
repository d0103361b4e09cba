// Prompts and the brush on the screen: drawn above the planes, set with the pointer, nothing of the viewer's own tools.

import { distance, sampled, touched, within } from './strokes.mjs';

const SVG = 'http://www.w3.org/2000/svg';
const DRAG = 5, NEAR = 9;
const OPPOSITE = { include: 'exclude', exclude: 'include', box: 'box', lasso: 'carve', brush: 'erase', erase: 'brush' };
const SETS = { include: 'include', exclude: 'exclude', lasso: 'include', carve: 'exclude' };
const PAINTS = ['brush', 'erase'];

export class Prompts {
  /** `annotator`: {tool, brush, work, screen, place(kind, voxels), paint(voxels, add), removePrompt(prompt), note(sentence)}. */
  constructor(annotator) {
    this.annotator = annotator;
    this.elements = new Map();
    this.hover = null;
    this.ending = new AbortController();
    const options = { capture: true, signal: this.ending.signal };
    window.addEventListener('pointerdown', event => this.down(event), options);
    window.addEventListener('pointermove', event => this.move(event), options);
    window.addEventListener('pointerup', event => this.up(event), options);
    window.addEventListener('pointercancel', () => this.drop(), options);
  }

  end() {
    this.ending.abort();
    for (const [element, layer] of this.elements) {
      layer.remove();
      element.removeEventListener(cornerstone.Enums.Events.IMAGE_RENDERED, this.redraw);
    }
  }

  redraw = () => this.draw();

  get painting() {
    return PAINTS.includes(this.annotator.tool);
  }

  /** Planes come and go with the layout. */
  follow() {
    for (const { viewport: { element } } of this.annotator.screen?.planes() ?? []) {
      if (this.elements.get(element)?.isConnected) continue;
      const layer = document.createElementNS(SVG, 'svg');
      layer.classList.add('medsa-prompts');
      element.append(layer);
      if (!this.elements.has(element)) element.addEventListener(cornerstone.Enums.Events.IMAGE_RENDERED, this.redraw);
      this.elements.set(element, layer);
    }
    this.draw();
  }

  /** The plane under the pointer; the viewer lets clicks on a plane that is not active through to what is around it. */
  plane({ target, clientX, clientY }) {
    return this.annotator.screen?.planes().find(({ viewport: { element } }) => {
      const { left, right, top, bottom } = element.getBoundingClientRect();
      return clientX >= left && clientX < right && clientY >= top && clientY < bottom
        && (element.contains(target) || target.contains(element));
    });
  }

  point(event, { viewport }) {
    const frame = viewport.element.getBoundingClientRect();
    return [event.clientX - frame.x, event.clientY - frame.y];
  }

  down(event) {
    const { annotator } = this, plane = annotator.tool !== 'look' && event.button === 0 && this.plane(event);
    if (!plane) return;
    event.preventDefault(); // no mouse events follow, which the viewer's own tools would take
    event.stopImmediatePropagation();
    annotator.activate(plane.id);
    const start = this.point(event, plane);
    if (event.altKey) {
      const near = this.nearest(plane.viewport, start);
      if (near) annotator.removePrompt(near);
      return;
    }
    const kind = event.shiftKey ? OPPOSITE[annotator.tool] : annotator.tool;
    const problem = this.misplaced(kind, plane.viewport);
    if (problem) annotator.note(problem);
    else this.drag = { plane, kind, path: [start] };
  }

  /** Why a tool cannot be used on a plane; "" when it can. */
  misplaced(kind, viewport) {
    const { screen } = this.annotator;
    if (kind === 'box' && !screen.isAcquired(viewport)) return 'Draw boxes on the plane the images were taken in; points may be set on any.';
    if (PAINTS.includes(kind) && !screen.axesOf(viewport)) return 'This plane lies askew in the images: paint on the one they were taken in.';
    return '';
  }

  move(event) {
    if (this.drag) {
      event.stopImmediatePropagation();
      this.drag.path.push(this.point(event, this.drag.plane));
    } else if (this.painting || this.hover) {
      const plane = this.painting && this.plane(event);
      this.hover = plane ? { ...plane, at: this.point(event, plane) } : null;
    } else return;
    this.draw();
  }

  up(event) {
    const { drag } = this;
    if (!drag) return;
    event.stopImmediatePropagation();
    this.drag = null;
    const { plane: { viewport }, kind } = drag, path = [...drag.path, this.point(event, drag.plane)];
    this.hover &&= { ...this.hover, at: path.at(-1) };
    const far = Math.max(...path.map(point => distance(point, path[0]))) > DRAG;
    if (kind === 'box') {
      if (far) this.placeBox(viewport, path[0], path.at(-1));
      else this.annotator.note('Drag from one corner of the box to the other.');
    } else if (PAINTS.includes(kind)) this.paint(viewport, path, kind === 'brush');
    else if (kind === SETS[kind]) this.place(kind, viewport, far ? sampled(path) : path.slice(0, 1));
    else if (far) this.place(SETS[kind], viewport, within(path), path);
    else this.annotator.note('Drag around the object, and let go where you began.');
    this.draw();
  }

  drop() {
    this.drag = null;
    this.draw();
  }

  /** A prompt of the voxels at these points; `outline`: the lasso they were found in. */
  place(kind, viewport, points, outline = []) {
    const voxels = this.voxels(viewport, points);
    if (voxels.length) this.annotator.place(kind, voxels, this.voxels(viewport, outline));
    else this.annotator.note('That is outside the image.');
  }

  /** The voxels at points of a plane, each once. */
  voxels(viewport, points) {
    const found = points.map(point => this.annotator.screen.voxelAt(viewport, point)).filter(Boolean);
    return [...new Map(found.map(voxel => [String(voxel), voxel])).values()];
  }

  paint(viewport, path, add) {
    const { screen, brush, work: { grid } } = this.annotator, middle = screen.voxelNear(viewport, path[0]);
    const voxels = touched(path, brush, middle, screen.axesOf(viewport), voxel => screen.canvasOf(viewport, voxel));
    this.annotator.paint(voxels.filter(voxel => voxel.every((value, n) => value >= 0 && value < grid.sizes[n])), add);
  }

  placeBox(viewport, a, b) {
    const { screen } = this.annotator, [from, to] = [screen.voxelNear(viewport, a), screen.voxelNear(viewport, b)];
    if (from[0] === to[0] || from[1] === to[1]) return;
    const low = from.map((value, n) => Math.min(value, to[n])), high = from.map((value, n) => Math.max(value, to[n]));
    this.annotator.place('box', [low, [high[0], high[1], low[2]]]);
  }

  nearest(viewport, point) {
    const { screen, work } = this.annotator;
    const seen = work.active.object.prompts.filter(prompt => screen.isSeen(viewport, prompt.points.at(-1)));
    const away = prompt => Math.min(...corners(prompt).map(voxel => distance(screen.canvasOf(viewport, voxel), point)));
    return seen.filter(prompt => away(prompt) < NEAR).toSorted((a, b) => away(a) - away(b))[0];
  }

  draw() {
    const { screen, work } = this.annotator;
    if (!screen) return;
    for (const { viewport } of screen.planes()) {
      const layer = this.elements.get(viewport.element);
      if (!layer) continue;
      layer.classList.toggle('medsa-aiming', this.annotator.tool !== 'look');
      viewport.element.classList.toggle('medsa-aim', this.annotator.tool !== 'look');
      const marks = work.labels.filter(label => label.visible).flatMap(label =>
        label.object.prompts.flatMap(prompt => this.marks(viewport, label, prompt)));
      layer.replaceChildren(...marks, ...this.unfinished(viewport), ...this.pointer(viewport));
    }
  }

  marks(viewport, label, prompt) {
    const { screen } = this.annotator, colour = `rgb(${label.color})`;
    if (!screen.isSeen(viewport, prompt.points[0])) return [];
    const at = voxel => screen.canvasOf(viewport, voxel);
    const emphasis = prompt === this.annotator.pointedAt ? ['medsa-pointed'] : [];
    if (prompt.kind === 'box') {
      if (!screen.isAcquired(viewport)) return [];
      return [shape('polygon', { points: corners(prompt).map(at).join(' '), stroke: colour, class: ['medsa-box', ...emphasis].join(' ') })];
    }
    const outline = prompt.outline?.length
      ? [shape('polygon', { points: prompt.outline.map(at).join(' '), stroke: colour, class: `medsa-lasso medsa-${prompt.kind}` })] : [];
    return [...outline, ...prompt.points.map(voxel => mark(at(voxel), prompt.kind, colour, emphasis))];
  }

  unfinished(viewport) {
    if (this.drag?.plane.viewport !== viewport) return this.painting && this.hover?.viewport === viewport ? [this.tip(this.hover.at)] : [];
    const { kind, path } = this.drag, colour = `rgb(${this.annotator.work.active.color})`, [a, b] = [path[0], path.at(-1)];
    if (kind === 'box')
      return [shape('polygon', { points: [a, [b[0], a[1]], b, [a[0], b[1]]].join(' '), stroke: colour, class: 'medsa-box' })];
    if (kind in SETS) return [shape('polyline', { points: path.join(' '), stroke: colour, class: `medsa-stroke medsa-${SETS[kind]}` })];
    const width = 2 * this.annotator.brush, stroke = kind === 'brush' ? colour : '#000';
    return [shape('polyline', { points: [...path, b].join(' '), stroke, 'stroke-width': width, class: 'medsa-painted' }), this.tip(b)];
  }

  /** The brush's rim at a point of the canvas. */
  tip([cx, cy]) {
    return shape('circle', { cx, cy, r: this.annotator.brush, class: 'medsa-tip' });
  }

  pointer(viewport) {
    const { cursor, screen } = this.annotator;
    if (!cursor || cursor.plane !== viewport.id) return [];
    const [x, y] = screen.canvasOf(viewport, cursor.voxel);
    return [shape('path', { d: `M${x - 14} ${y}h10m8 0h10M${x} ${y - 14}v10m0 8v10`, class: 'medsa-cursor' })];
  }
}

/** The voxels that a prompt's outline goes through. */
function corners({ kind, points: [a, b], points, outline = [] }) {
  return kind === 'box' ? [a, [b[0], a[1], a[2]], b, [a[0], b[1], a[2]]] : [...points, ...outline];
}

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function mark([x, y], kind, colour, emphasis) {
  const group = shape('g', { transform: `translate(${x} ${y})`, class: ['medsa-mark', `medsa-${kind}`, ...emphasis].join(' ') });
  group.append(shape('circle', { r: 6, style: kind === 'include' ? `fill: ${colour}` : `stroke: ${colour}` }),
    shape('path', { d: kind === 'include' ? 'M-3 0h6M0 -3v6' : 'M-3 0h6' }));
  return group;
}
