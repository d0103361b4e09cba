// Strokes of the hand as the model and the label map take them: points along a line, points within an outline, discs.

const STEP = 14, MOST = 16, WITHIN = 8, CANDIDATES = 32, SHALLOW = 0.3;

export const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]);

/** A stroke as points at even distances, at most some. */
export function sampled(path) {
  const points = [path[0]];
  for (const point of path) if (distance(point, points.at(-1)) >= STEP) points.push(point);
  const step = Math.max(1, points.length / MOST);
  return Array.from({ length: Math.min(points.length, MOST) }, (_, n) => points[Math.floor(n * step)]);
}

/** Points well inside a closed outline: the deepest first, each of the next as far from the others as can be. */
export function within(outline) {
  const [xs, ys] = [outline.map(([x]) => x), outline.map(([, y]) => y)];
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const at = n => (n + 0.5) / CANDIDATES;
  const inside = [];
  for (let n = 0; n < CANDIDATES ** 2; n += 1) {
    const point = [left + (right - left) * at(n % CANDIDATES), top + (bottom - top) * at(Math.floor(n / CANDIDATES))];
    if (surrounds(outline, point)) inside.push({ point, depth: depth(outline, point), gap: Infinity });
  }
  if (!inside.length) return sampled(outline);
  const deep = SHALLOW * Math.max(...inside.map(one => one.depth)), roomy = inside.filter(one => one.depth >= deep);
  const chosen = [];
  while (chosen.length < Math.min(WITHIN, roomy.length)) {
    const best = roomy.reduce((most, one) => (worth(one, chosen) > worth(most, chosen) ? one : most));
    chosen.push(best.point);
    for (const one of roomy) one.gap = Math.min(one.gap, distance(one.point, best.point));
  }
  return chosen;
}

const worth = (one, chosen) => (chosen.length ? one.gap : one.depth);

/** True when a closed outline goes round a point (even-odd rule). */
function surrounds(outline, [x, y]) {
  let odd = false;
  outline.forEach(([x1, y1], n) => {
    const [x0, y0] = outline.at(n - 1);
    if (y0 > y !== y1 > y && x < x0 + ((y - y0) / (y1 - y0)) * (x1 - x0)) odd = !odd;
  });
  return odd;
}

/** How far a point is from an outline. */
const depth = (outline, point) => Math.min(...outline.map((end, n) => fromLine(outline.at(n - 1), end, point)));

function fromLine([x0, y0], [x1, y1], [x, y]) {
  const [dx, dy] = [x1 - x0, y1 - y0], along = ((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy || 1);
  const t = Math.max(0, Math.min(1, along));
  return Math.hypot(x0 + t * dx - x, y0 + t * dy - y);
}

/**
 * The voxels [i, j, k] of a plane that a brush of `radius` touches on its way along `path`, all on the canvas.
 *
 * `middle`: a voxel of the plane, `axes`: the two grid axes that lie in it, `canvasOf(voxel)` -> [x, y].
 */
export function touched(path, radius, middle, axes, canvasOf) {
  const beside = axis => middle.map((value, n) => value + (n === axis));
  const origin = canvasOf(middle), [u, v] = axes.map(axis => canvasOf(beside(axis)).map((value, n) => value - origin[n]));
  const area = u[0] * v[1] - u[1] * v[0], found = new Map();
  const reach = radius / Math.min(Math.hypot(...u), Math.hypot(...v));
  for (const [x, y] of dense(path, Math.max(1, radius / 3))) {
    const [dx, dy] = [x - origin[0], y - origin[1]];
    const a = (dx * v[1] - dy * v[0]) / area, b = (dy * u[0] - dx * u[1]) / area;
    const near = ([m, n]) => Math.hypot((m - a) * u[0] + (n - b) * v[0], (m - a) * u[1] + (n - b) * v[1]) <= radius;
    const here = [Math.round(a), Math.round(b)];
    for (let m = Math.ceil(a - reach); m <= a + reach; m += 1)
      for (let n = Math.ceil(b - reach); n <= b + reach; n += 1)
        if (near([m, n])) found.set(`${m} ${n}`, [m, n]);
    found.set(here.join(' '), here);
  }
  return [...found.values()].map(steps => middle.map((value, n) => value + (steps[axes.indexOf(n)] ?? 0)));
}

/** A path with no two points further apart than `step`. */
function dense(path, step) {
  return path.flatMap((point, n) => {
    const before = path[n - 1] ?? point, parts = Math.max(1, Math.ceil(distance(before, point) / step));
    return Array.from({ length: parts }, (_, m) => before.map((value, axis) => value + ((point[axis] - value) * (m + 1)) / parts));
  });
}
