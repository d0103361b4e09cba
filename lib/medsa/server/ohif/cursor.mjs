// A cursor for those who set prompts with the keyboard: {plane, voxel, corner}, the corner that of a box that is begun.

/** Bring the cursor out into the middle of the active plane, or put it away. */
export function toggle(annotator) {
  const active = annotator.services.viewportGridService.getState().activeViewportId;
  const plane = annotator.screen.planes().find(one => one.id === active) ?? annotator.screen.planes()[0];
  const { clientWidth, clientHeight } = plane.viewport.element;
  const voxel = annotator.screen.voxelAt(plane.viewport, [clientWidth / 2, clientHeight / 2]);
  annotator.cursor = annotator.cursor || !voxel ? null : { plane: plane.id, voxel, corner: null };
  if (annotator.cursor) document.activeElement?.blur(); // Space is for the cursor, not for the button pressed last
  if (annotator.cursor && annotator.tool === 'look') annotator.setTool('include');
  annotator.prompts.draw();
}

/** Move it by voxels, as the screen shows right and down, and by slices of its plane. */
export function move(annotator, [right, down], deeper) {
  const { viewport } = annotator.screen.planes().find(one => one.id === annotator.cursor.plane);
  const { voxel } = annotator.cursor, [x, y] = annotator.screen.canvasOf(viewport, voxel);
  const moves = [0, 1, 2].map(axis => {
    const [a, b] = annotator.screen.canvasOf(viewport, voxel.map((value, n) => value + (n === axis)));
    return [a - x, b - y];
  });
  const along = n => moves.map(one => Math.abs(one[n])).reduce((best, value, axis, all) => (value > all[best] ? axis : best), 0);
  const [h, v] = [along(0), along(1)], through = [0, 1, 2].find(axis => axis !== h && axis !== v);
  const next = [...voxel];
  next[h] += right * Math.sign(moves[h][0]);
  next[v] += down * Math.sign(moves[v][1]);
  next[through] += deeper;
  annotator.cursor.voxel = next.map((value, n) => Math.max(0, Math.min(annotator.work.grid.sizes[n] - 1, value)));
  if (deeper) annotator.screen.jump(annotator.cursor.voxel);
  annotator.prompts.draw();
}

/** What the present tool does at the cursor; `opposite`: with Shift. */
export function place(annotator, opposite) {
  const { voxel, corner, plane } = annotator.cursor, { viewport } = annotator.screen.planes().find(one => one.id === plane);
  const { tool, prompts, screen } = annotator, problem = prompts.misplaced(tool, viewport);
  if (problem) annotator.note(problem);
  else if (prompts.painting) prompts.paint(viewport, [screen.canvasOf(viewport, voxel)], (tool === 'brush') !== opposite);
  else if (tool !== 'box') annotator.place((tool === 'exclude') === opposite ? 'include' : 'exclude', [voxel]);
  else if (!corner || corner[2] !== voxel[2]) {
    annotator.cursor.corner = voxel;
    annotator.note('First corner set: move to the other one and press Space.');
  } else {
    annotator.cursor.corner = null;
    const low = corner.map((value, n) => Math.min(value, voxel[n])), high = corner.map((value, n) => Math.max(value, voxel[n]));
    annotator.place('box', [low, high]);
  }
}
