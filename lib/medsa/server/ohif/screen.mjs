// The viewer's side of one series: its grid, its planes, and the label map as cornerstone shows it.

const ENGINE = 'OHIFCornerstoneRenderingEngine';
const LABELMAP = 'Labelmap';

export const id = series => `medsa-${series}`;

/** The planes on the screen that show a volume: [{id, viewport, volume}]. */
export function planes() {
  return cornerstone.getEnabledElements().filter(one => one.renderingEngineId === ENGINE).flatMap(({ viewport }) => {
    const volume = viewport.getVolumeId && cornerstone.cache.getVolume(viewport.getVolumeId());
    return volume && viewport.type === 'orthographic' ? [{ id: viewport.id, viewport, volume }] : [];
  });
}

/** What is being looked at: {displaySet, volume}, or null. */
export function shown(services) {
  const { viewports, activeViewportId } = services.viewportGridService.getState();
  const active = viewports.get(activeViewportId);
  const displaySet = active?.displaySetInstanceUIDs?.length
    && services.displaySetService.getDisplaySetByUID(active.displaySetInstanceUIDs[0]);
  const plane = planes().find(one => one.id === activeViewportId);
  return displaySet && plane && plane.volume.imageIds?.length ? { displaySet, volume: plane.volume } : null;
}

/** The grid of a volume: {sizes, directions, origin} in LPS millimetres. */
export function gridOf({ dimensions, direction, spacing, origin }) {
  const axis = n => [0, 1, 2].map(m => direction[3 * n + m] * spacing[n]);
  return { sizes: [...dimensions], directions: [axis(0), axis(1), axis(2)], origin: [...origin] };
}

export class Screen {
  constructor(services, work, displaySet, volume) {
    Object.assign(this, { services, work, displaySet, volume, segmentation: id(work.series) });
  }

  /** Show the label map in every plane of the series. */
  async begin() {
    const { segmentationService } = this.services, { labels } = this.work;
    const segments = Object.fromEntries(labels.map(label => [label.index, segment(label)]));
    if (!segmentationService.getSegmentation(this.segmentation))
      await segmentationService.createLabelmapForDisplaySet(this.displaySet, {
        segmentationId: this.segmentation, label: 'medsa', segments,
      });
    const { imageIds } = segmentationService.getSegmentation(this.segmentation).representationData.Labelmap;
    const place = new Map(this.volume.imageIds.map((image, k) => [image, k]));
    this.images = [];
    for (const imageId of imageIds) {
      const image = cornerstone.cache.getImage(imageId);
      this.images[place.get(image.referencedImageId)] = image;
    }
    await this.follow();
    this.draw(0, this.work.grid.sizes[2]);
  }

  /** Planes that have come since get the label map, too. */
  async follow() {
    for (const plane of this.planes()) {
      const there = this.services.segmentationService.getSegmentationRepresentations(plane.id, { segmentationId: this.segmentation });
      if (there.length) continue;
      await this.services.segmentationService.addSegmentationRepresentation(plane.id, { segmentationId: this.segmentation, type: LABELMAP });
      this.work.labels.forEach(label => this.colour(label, [plane]));
    }
  }

  planes() {
    return planes().filter(plane => plane.volume === this.volume);
  }

  /** Cornerstone knows a label that has come since, its colour and whether it is seen. */
  colour(label, where = this.planes()) {
    const { segmentationService } = this.services, { state } = cornerstoneTools.segmentation;
    const { segments } = segmentationService.getSegmentation(this.segmentation);
    segments[label.index] ??= segment(label);
    for (const plane of where) {
      for (const { segments: drawn } of state.getSegmentationRepresentations(plane.id, { segmentationId: this.segmentation }))
        drawn[label.index] ??= { visible: true };
      segmentationService.setSegmentColor(plane.id, this.segmentation, label.index, [...label.color, 255]);
      segmentationService.setSegmentVisibility(plane.id, this.segmentation, label.index, label.visible, LABELMAP);
    }
  }

  /** Slices [from, to) have changed. */
  draw(from, to) {
    const { slice, voxels } = this.work, changed = [];
    for (let k = from; k < to; k += 1) {
      this.images[k].voxelManager.getScalarData().set(voxels.subarray(k * slice, (k + 1) * slice));
      changed.push(k);
    }
    cornerstoneTools.segmentation.triggerSegmentationEvents.triggerSegmentationDataModified(this.segmentation, changed);
  }

  /** The voxel [i, j, k] at a point of a plane's canvas; null outside the image. */
  voxelAt(viewport, point) {
    const voxel = this.volume.imageData.worldToIndex(viewport.canvasToWorld(point)).map(Math.round);
    return voxel.every((value, n) => value >= 0 && value < this.work.grid.sizes[n]) ? voxel : null;
  }

  /** The voxel at a point of a plane's canvas, or the nearest one of the image. */
  voxelNear(viewport, point) {
    const { sizes } = this.work.grid;
    return this.volume.imageData.worldToIndex(viewport.canvasToWorld(point))
      .map((value, n) => Math.max(0, Math.min(sizes[n] - 1, Math.round(value))));
  }

  canvasOf(viewport, voxel) {
    return viewport.worldToCanvas(this.volume.imageData.indexToWorld(voxel));
  }

  /** How far a plane's normal goes along each axis of the grid, -1 to 1. */
  along(viewport) {
    const { viewPlaneNormal } = viewport.getCamera(), { direction } = this.volume;
    return [0, 1, 2].map(axis => [0, 1, 2].reduce((sum, n) => sum + viewPlaneNormal[n] * direction[3 * axis + n], 0));
  }

  /** True when the plane shows the series' own slices. */
  isAcquired(viewport) {
    return Math.abs(this.along(viewport)[2]) > 0.999;
  }

  /** The two axes of the grid that lie in a plane; null for a plane that lies askew in it. */
  axesOf(viewport) {
    const through = this.along(viewport).findIndex(part => Math.abs(part) > 0.999);
    return through < 0 ? null : [0, 1, 2].filter(axis => axis !== through);
  }

  /** The number of slice k as the viewer counts them, from 1. */
  numberOf(k) {
    const plane = this.planes().find(({ viewport }) => this.isAcquired(viewport));
    return plane && this.along(plane.viewport)[2] < 0 ? this.work.grid.sizes[2] - k : k + 1;
  }

  /** True when a voxel lies in the plane as it is scrolled now. */
  isSeen(viewport, voxel) {
    const { focalPoint, viewPlaneNormal } = viewport.getCamera(), { spacing } = this.volume;
    const world = this.volume.imageData.indexToWorld(voxel);
    const away = Math.abs([0, 1, 2].reduce((sum, n) => sum + (world[n] - focalPoint[n]) * viewPlaneNormal[n], 0));
    const thick = this.along(viewport).reduce((sum, part, axis) => sum + spacing[axis] * Math.abs(part), 0);
    return away <= thick / 2 + 1e-3;
  }

  /** Bring a voxel onto the screen, in all planes. */
  jump(voxel) {
    const world = this.volume.imageData.indexToWorld(voxel);
    for (const { viewport } of this.planes()) {
      viewport.jumpToWorld(world);
      viewport.render();
    }
  }

  /** The window on the screen as "low,high" in the image's own values; "" where there is none. */
  window() {
    const range = this.planes()[0]?.viewport.getProperties()?.voiRange;
    const values = [range?.lower, range?.upper].map(value => Math.round(value * 100) / 100);
    return values.every(Number.isFinite) && values[0] < values[1] ? values.join(',') : '';
  }
}

const segment = ({ index, name }) => ({ segmentIndex: index, label: name, locked: false, active: false, cachedStats: {} });
