// OHIF's settings, served instead of the bundle's own: this server as the only source, and medsa's extension.
{
  const home = new URL('.', document.currentScript.src).pathname; // "/ohif/", or what a reverse proxy makes of it
  const server = new URL('..', document.currentScript.src).pathname;
  const store = `${window.location.origin}${server}proxy/dicom/wado`;
  const medsa = import(new URL('medsa-panel/extension.mjs', document.currentScript.src));

  // The bundle looks for its parts under /ohif/; this tells its loader where they are.
  (window.webpackChunk ||= []).push([['medsa'], {}, loader => { loader.p = home; }]);

  window.config = {
    routerBasename: home,
    showStudyList: true,
    extensions: [medsa.then(found => found.extension)],
    modes: [medsa.then(found => found.mode)],
    showWarningMessageForCrossOrigin: true,
    showCPUFallbackMessage: true,
    showLoadingIndicator: true,
    strictZSpacingForVolumeViewport: true,
    useSharedArrayBuffer: 'FALSE',
    investigationalUseDialog: { option: 'never' },
    defaultDataSourceName: 'dicomweb',
    dataSources: [
      {
        namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
        sourceName: 'dicomweb',
        configuration: {
          friendlyName: 'The store behind medsa',
          name: 'medsa',
          wadoUriRoot: `${server}proxy/dicom/wado`,
          qidoRoot: `${server}proxy/dicom/qido`,
          wadoRoot: `${server}proxy/dicom/wado`,
          qidoSupportsIncludeField: true,
          supportsReject: true,
          imageRendering: 'wadors',
          thumbnailRendering: 'wadors',
          enableStudyLazyLoad: false,
          supportsFuzzyMatching: true,
          supportsWildcard: true,
          dicomUploadEnabled: true,
          // The store's links to larger values, whatever name a reverse proxy has for this server.
          bulkDataURI: { enabled: true, startsWith: store, prefixWith: store, transform: link => link.replace(/^https?:.*\/proxy\/dicom\/wado(?=\/)/, store) },
        },
      },
    ],
  };

  // The bundle's MONAI Label panel reads its server from this cookie, and without it assumes port 8000.
  document.cookie = `MONAILABEL_SERVER_URL=${escape(window.location.origin + server)};path=${home}`;
}

// Where each image of a series stands in the SEG that dcmjs writes. dcmjs goes down the scan axis, whatever
// the order of the images it is given; the viewer goes up, so that its masks came out mirrored.
window.medsaFrames = images => {
  const planes = images.map(image => cornerstone.metaData.get('imagePlaneModule', image.imageId));
  const [ax, ay, az] = planes[0].rowCosines, [bx, by, bz] = planes[0].columnCosines;
  const axis = [ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx];
  const heights = planes.map(plane => axis.reduce((sum, a, n) => sum + a * plane.imagePositionPatient[n], 0));
  const frames = [];
  heights.map((_, n) => n).toSorted((m, n) => heights[n] - heights[m]).forEach((n, frame) => { frames[n] = frame; });
  return frames;
};
