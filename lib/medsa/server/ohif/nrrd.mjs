// NRRD, as the server speaks it: uint8 voxels on a grid with its place in the patient (LPS, millimetres).

/** {sizes: [I, J, K], directions: three vectors, origin, data: Uint8Array} of raw NRRD bytes. */
export function parse(buffer) {
  const bytes = new Uint8Array(buffer);
  let end = 1;
  while (end < bytes.length && !(bytes[end] === 10 && bytes[end - 1] === 10)) end += 1;
  const text = new TextDecoder('ascii').decode(bytes.subarray(0, end));
  const field = name => text.match(new RegExp(`^${name}: (.*)$`, 'm'))?.[1] ?? '';
  const vectors = name => [...field(name).matchAll(/\(([^)]*)\)/g)].map(found => found[1].split(',').map(Number));
  const sizes = field('sizes').split(' ').map(Number);
  const data = bytes.subarray(end + 1);
  const known = /^(uint8|uchar|unsigned char)$/.test(field('type')) && field('encoding') === 'raw';
  if (!text.startsWith('NRRD') || !known || sizes.length !== 3 || data.length !== sizes[0] * sizes[1] * sizes[2])
    throw new Error('the server sent something that is no mask');
  return { sizes, directions: vectors('space directions'), origin: vectors('space origin')[0], data };
}

/** A gzipped NRRD file of `data` (I, J, K) on a grid. */
export async function file({ sizes, directions, origin }, data) {
  const vector = numbers => `(${numbers.join(',')})`;
  const header = [
    'NRRD0004', 'type: uint8', 'dimension: 3', 'space: left-posterior-superior', `sizes: ${sizes.join(' ')}`,
    `space directions: ${directions.map(vector).join(' ')}`, 'kinds: domain domain domain', 'encoding: gzip',
    `space origin: ${vector(origin)}`, '\n',
  ].join('\n');
  return new Blob([header, await zipped(data)]);
}

export const zipped = data => new Response(new Blob([data]).stream().pipeThrough(new CompressionStream('gzip'))).blob();

export const unzipped = async blob =>
  new Uint8Array(await new Response(blob.stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer());

/** How far, in voxels, a mask misses the grid it should lie on; `first` is the slice it begins with. */
export function offset(mask, grid, first = 0) {
  const place = (g, k) => (i, j) => [0, 1, 2].map(n =>
    g.origin[n] + i * g.directions[0][n] + j * g.directions[1][n] + k * g.directions[2][n]);
  const length = vector => Math.hypot(...vector);
  const smallest = Math.min(...grid.directions.map(length));
  const [I, J, K] = mask.sizes;
  return Math.max(...[[0, 0, 0], [I - 1, J - 1, K - 1], [I - 1, 0, K - 1], [0, J - 1, 0]].map(([i, j, k]) => {
    const a = place(mask, k)(i, j), b = place(grid, k + first)(i, j);
    return length(a.map((value, n) => value - b[n])) / smallest;
  }));
}
