// Changes of a label map: what a mask does to it, and how that is taken back. Arrays only; no viewer, no server.
//
// A change is {at: Uint32Array ascending, before: Uint8Array, after: Uint8Array}.

export const NOTHING = Object.freeze({ at: new Uint32Array(0), before: new Uint8Array(0), after: new Uint8Array(0) });

/** Collects single voxels, in ascending order, into a change. */
function collector() {
  let at = new Uint32Array(1024), before = new Uint8Array(1024), after = new Uint8Array(1024), n = 0;
  const grown = old => { const next = new old.constructor(old.length * 2); next.set(old); return next; };
  return {
    add(index, was, is) {
      if (n === at.length) { at = grown(at); before = grown(before); after = grown(after); }
      at[n] = index; before[n] = was; after[n] = is; n += 1;
    },
    change: () => (n ? { at: at.slice(0, n), before: before.slice(0, n), after: after.slice(0, n) } : NOTHING),
  };
}

/** What `voxels` in [from, to) were before `changes` (oldest first) were made. */
export function underneath(voxels, changes, from, to) {
  const under = voxels.slice(from, to);
  for (const { at, before } of changes.toReversed())
    for (let n = firstAtLeast(at, from); n < at.length && at[n] < to; n += 1) under[at[n] - from] = before[n];
  return under;
}

function firstAtLeast(sorted, value) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1; else high = middle;
  }
  return low;
}

/**
 * The change that makes `label` in [from, to) what it was underneath, together with `mask`.
 *
 * `mask(index)` is true on the object. Voxels of other labels stay, unless `overwrite`.
 */
export function painted(voxels, under, from, to, mask, label, overwrite) {
  const found = collector();
  for (let index = from; index < to; index += 1) {
    const now = voxels[index], below = under[index - from];
    if (mask(index) || below === label) {
      if (now !== label && (now === 0 || overwrite)) found.add(index, now, label);
    } else if (now === label) found.add(index, now, below);
  }
  return found.change();
}

/** One change that does what `first` and then `second` do. */
export function joined(first, second) {
  if (!first.at.length) return second;
  if (!second.at.length) return first;
  const found = collector();
  for (let m = 0, n = 0; m < first.at.length || n < second.at.length;) {
    const a = m < first.at.length ? first.at[m] : Infinity, b = n < second.at.length ? second.at[n] : Infinity;
    if (a < b) { found.add(a, first.before[m], first.after[m]); m += 1; }
    else if (b < a) { found.add(b, second.before[n], second.after[n]); n += 1; }
    else {
      if (first.before[m] !== second.after[n]) found.add(a, first.before[m], second.after[n]);
      m += 1; n += 1;
    }
  }
  return found.change();
}

/** Make a change in `voxels`, or take it back; voxels that somebody else has changed since stay. */
export function make(voxels, counts, { at, before, after }, back = false) {
  const [from, to] = back ? [after, before] : [before, after];
  for (let n = 0; n < at.length; n += 1) {
    if (voxels[at[n]] !== from[n]) continue;
    voxels[at[n]] = to[n];
    counts[from[n]] -= 1;
    counts[to[n]] += 1;
  }
}

/** Overlap of two masks given as functions of the index, over [from, to): 1 when both are empty. */
export function dice(a, b, from, to) {
  let both = 0, all = 0;
  for (let index = from; index < to; index += 1) {
    const inA = a(index) ? 1 : 0, inB = b(index) ? 1 : 0;
    both += inA & inB;
    all += inA + inB;
  }
  return all ? (2 * both) / all : 1;
}
