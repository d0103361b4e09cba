// What OHIF registers: a mode "Annotate" beside the bundle's own ones, and the panel that it shows on the right.

import { Annotator } from './annotator.mjs';
import { panel } from './panel.mjs';
import { advice, missing } from './version.mjs';

const STOCK_MODE = '@ohif/mode-monai-label';
const PANEL = 'medsa.panelModule.annotate';

const style = document.createElement('link');
style.rel = 'stylesheet';
style.href = new URL('style.css', import.meta.url);
document.head.append(style);

let annotator = null, place = null, problem = '';

/** Fill the panel when both it and the annotator are there, whichever comes first. */
function fill(node) {
  place = node;
  if (place && problem) place.replaceChildren(Object.assign(document.createElement('p'), { className: 'medsa-advice', textContent: problem }));
  else if (place && annotator) place.replaceChildren(panel(annotator));
}

/** An element as React makes it; the bundle gives React to nobody. */
const element = {
  $$typeof: Symbol.for('react.element'), type: 'div', key: null, ref: fill, props: { className: 'medsa' }, _owner: null,
};

export const extension = {
  id: 'medsa',
  version: '1',
  getPanelModule: () => [
    { name: 'annotate', iconName: 'tab-segmentation', iconLabel: 'Annotate', label: 'Annotate', component: () => element },
  ],
  getHangingProtocolModule: () => [{ name: 'medsa', protocol }],
};

/** The bundle's MONAI Label mode (its toolbar, hotkeys and tools) with our panel and one large plane. */
export const mode = {
  id: 'medsa',
  async modeFactory({ modeConfiguration, loadModules }) {
    const [stock] = await loadModules([STOCK_MODE]);
    const base = stock.modeFactory({ modeConfiguration });
    return {
      ...base,
      id: 'medsa',
      routeName: 'medsa',
      displayName: 'Annotate',
      hangingProtocol: 'medsa',
      routes: [{ ...base.routes[0], path: 'medsa', layoutTemplate: about => {
        const template = base.routes[0].layoutTemplate(about);
        return { ...template, props: { ...template.props, leftPanelClosed: true, rightPanels: [PANEL] } };
      } }],
      onModeEnter(about) {
        base.onModeEnter(about);
        const { services } = about.servicesManager, gone = missing(services);
        problem = gone.length ? advice(gone) : '';
        if (!problem) {
          annotator = new Annotator(services);
          annotator.begin();
          window.medsa = annotator;
        }
        fill(place);
      },
      onModeExit(about) {
        annotator?.end();
        annotator = window.medsa = null;
        base.onModeExit(about);
      },
    };
  },
};

const plane = (viewportId, orientation) => ({
  viewportOptions: {
    viewportId, orientation, toolGroupId: 'mpr', viewportType: 'volume', initialImageOptions: { preset: 'middle' },
    syncGroups: [{ type: 'voi', id: 'mpr', source: true, target: true, options: { syncColormap: true } }],
  },
  displaySets: [{ id: 'image' }],
});

const protocol = {
  id: 'medsa',
  name: 'One large plane',
  protocolMatchingRules: [],
  imageLoadStrategy: 'interleaveCenter',
  displaySetSelectors: {
    image: {
      seriesMatchingRules: [
        { attribute: 'isReconstructable', constraint: { equals: { value: true } }, required: true },
        { attribute: 'SeriesInstanceUID', weight: 10, constraint: { equals: { value: new URLSearchParams(location.search).get('medsa') } } },
      ],
    },
  },
  stages: [{
    name: 'large',
    viewportStructure: {
      layoutType: 'grid',
      properties: {
        rows: 2, columns: 3, layoutOptions: [
          { x: 0, y: 0, width: 0.7, height: 1 }, { x: 0.7, y: 0, width: 0.3, height: 0.5 }, { x: 0.7, y: 0.5, width: 0.3, height: 0.5 },
        ],
      },
    },
    viewports: [plane('medsa-main', 'acquisition'), plane('medsa-second', 'sagittal'), plane('medsa-third', 'coronal')],
  }],
};
