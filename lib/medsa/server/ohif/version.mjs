// Whether this is the viewer that the extension was made for, and what to do when it is another one.

const NEEDED = {
  'cornerstone': ['getEnabledElements', 'cache.getVolume', 'cache.getImage', 'eventTarget', 'Enums.Events'],
  'cornerstoneTools': ['segmentation.triggerSegmentationEvents.triggerSegmentationDataModified', 'segmentation.state.getSegmentationRepresentations', 'Enums.Events'],
};
const SERVICES = {
  segmentationService: ['createLabelmapForDisplaySet', 'addSegmentationRepresentation', 'setSegmentColor', 'setSegmentVisibility', 'getSegmentation'],
  viewportGridService: ['getState', 'setActiveViewportId'],
  displaySetService: ['getDisplaySetByUID'],
  userAuthenticationService: ['getAuthorizationHeader'],
};

const has = (object, path) => path.split('.').reduce((found, name) => found?.[name], object) !== undefined;

/** What the viewer lacks, by name; empty for the bundle of MONAI Label 0.8.5. */
export function missing(services, page = window) {
  const globals = Object.entries(NEEDED).flatMap(([name, paths]) => paths.filter(path => !has(page[name], path)).map(path => `${name}.${path}`));
  const gone = Object.entries(SERVICES).flatMap(([name, paths]) => paths.filter(path => !has(services[name], path)).map(path => `${name}.${path}`));
  return [...globals, ...gone];
}

/** The sentence for somebody whose viewer is another one. */
export const advice = names =>
  `This viewer is not the one that medsa's panel was made for: it has no ${names.join(', no ')}. `
  + 'Install MONAI Label 0.8.5, or use the mode "MONAI Label" of the study list.';
