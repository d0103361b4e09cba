// Added to the viewer's settings: what OHIF's bundle in MONAI Label 0.8.5 needs to work with this server.

// The MONAI Label panel reads its server from this cookie, and without it assumes port 8000.
document.cookie = `MONAILABEL_SERVER_URL=${escape(window.location.origin + '/')}`;

// Where each image of a series stands in the SEG that dcmjs writes. dcmjs goes down the scan axis, whatever
// the order of the images it is given; the viewer goes up, so that its masks came out mirrored.
window.medsaFrames = images => {
  const planes = images.map(image => cornerstone.metaData.get('imagePlaneModule', image.imageId));
  const [ax, ay, az] = planes[0].rowCosines, [bx, by, bz] = planes[0].columnCosines;
  const axis = [ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx];
  const heights = planes.map(plane => axis.reduce((sum, a, n) => sum + a * plane.imagePositionPatient[n], 0));
  const frames = [];
  heights.map((_, n) => n).sort((m, n) => heights[n] - heights[m]).forEach((n, frame) => { frames[n] = frame; });
  return frames;
};
