"""OHIF as a person sees it: a page in headless Chromium, and what one does and reads there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Page, Playwright
from playwright.sync_api import TimeoutError as NothingCame

TIMEOUT = 180_000  # milliseconds: two cores render in software and compute at the same time
PATIENCE = 300_000  # for a whole volume
AXIAL, CORONAL = "mpr-axial", "mpr-coronal"
ARGUMENTS = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
)

_VIEWPORT = "window.cornerstone?.getRenderingEngine('OHIFCornerstoneRenderingEngine')?.getViewport(id)"
_LOADED = f"""id => {{
  const volume = {_VIEWPORT}?.getVolumeId?.();
  return Boolean(volume && cornerstone.cache.getVolume(volume)?.loadStatus?.loaded);
}}"""
_JUMP = f"""([id, voxel]) => {{
  services.viewportGridService.setActiveViewportId(id);
  const viewport = {_VIEWPORT};
  const world = viewport.getImageData().imageData.indexToWorld(voxel);
  viewport.jumpToWorld(world);
  viewport.render();
  const [x, y] = viewport.worldToCanvas(world), frame = viewport.element.getBoundingClientRect();
  return [frame.x + x, frame.y + y];
}}"""
_LABELMAP = """() => {
  const volume = services.segmentationService.getLabelmapVolume('1');
  const voxels = volume.voxelManager.getCompleteScalarDataArray();
  const runs = [];
  for (let start = 0, n = 1; n <= voxels.length; n++)
    if (voxels[n] !== voxels[start]) { runs.push(voxels[start], n - start); start = n; }
  return {shape: volume.dimensions, runs};
}"""
_SEGMENTS = """() => {
  const segments = Object.values(services.segmentationService.getSegmentations()[0].segments);
  return Object.fromEntries(segments.map(segment => [segment.label, segment.segmentIndex]));
}"""
_STORE = """() => { window.stored = commandsManager.runCommand('storeSegmentation',
  {segmentationId: '1', dataSource: extensionManager.getActiveDataSource()[0]}); }"""


def launch(playwright: Playwright) -> Browser:
    """Headless Chromium from the system; `MEDSA_CHROMIUM` names another."""
    program = os.environ.get("MEDSA_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise RuntimeError("Chromium is not installed; type: sudo apt-get install chromium fonts-dejavu-core")
    return playwright.chromium.launch(executable_path=program, args=list(ARGUMENTS))


@dataclass(frozen=True)
class Viewer:
    """One user's browser window, with its own cookies, storage and size."""

    page: Page
    url: str

    def open_study(self, study_uid: str) -> None:
        """The study in the MONAI Label mode, all slices loaded."""
        self.page.goto(f"{self.url}/ohif/monai-label?StudyInstanceUIDs={study_uid}", timeout=TIMEOUT)
        self.page.wait_for_selector("#monailabelServerURL", timeout=TIMEOUT)
        self.page.wait_for_function(_LOADED, arg=AXIAL, timeout=TIMEOUT)
        confirm = self.page.get_by_text("Confirm and Hide")
        if confirm.count():
            confirm.first.click()

    def connect(self) -> None:
        """Press the arrow beside the server's address and open the point prompts."""
        self.page.locator(".monaiLabelPanel .actionButton").first.click()
        tab = self.page.locator("label.tab-label", has_text="Point Prompts")
        tab.wait_for(timeout=TIMEOUT)
        self.page.wait_for_function("services.segmentationService.getLabelmapVolume('1')", timeout=TIMEOUT)
        tab.click()

    @property
    def tab(self) -> Any:
        """The open point prompts in the panel."""
        return self.page.locator(".tab", has_text="Point Prompts")

    def choose(self, model: str, label: str) -> None:
        """The model of the list, and what is looked for."""
        self.tab.locator("select").first.select_option(model)
        self.choose_label(label)

    def choose_label(self, label: str) -> None:
        """What the next clicks mean; "background" for clicks off the object."""
        self.tab.locator("tr.clickable-row").get_by_text(label, exact=True).click()

    def click(self, voxel: Sequence[int], plane: str = AXIAL) -> None:
        """Show the voxel in one of the planes and click on it; again if the viewer was not ready."""
        before = self.points()
        for _ in range(5):
            x, y = self.page.evaluate(_JUMP, [plane, list(voxel)])
            self.page.mouse.move(x, y)
            self.page.mouse.click(x, y)
            with suppress(NothingCame):
                self.page.wait_for_function(f"{_POINTS} > {before}", timeout=TIMEOUT / 5)
                return
        raise AssertionError("five clicks set no point")

    def points(self) -> int:
        """How many points are set."""
        return int(self.page.evaluate(_POINTS))

    def run(self) -> Answer:
        """Press Run, wait until the mask is drawn, and return what was sent and came back."""
        return run_together(self)[0]

    def labelmap(self) -> NDArray[np.uint8]:
        """The viewer's segmentation (I, J, K) as it holds it: segment numbers of the panel's list."""
        found = self.page.evaluate(_LABELMAP)
        values, lengths = np.array(found["runs"]).reshape(-1, 2).T
        return np.repeat(values.astype(np.uint8), lengths).reshape(found["shape"], order="F")

    def mask(self, label: str) -> NDArray[np.bool_]:
        """(I, J, K): the voxels of one label in the viewer's segmentation."""
        return self.labelmap() == self.page.evaluate(_SEGMENTS)[label]

    def pixels(self, plane: str = AXIAL) -> NDArray[np.uint8]:
        """One of the planes as it looks now, (height, width, 3)."""
        element = self.page.locator(f"[data-viewport-uid='{plane}']").first
        with Image.open(BytesIO(element.screenshot())) as image:
            return np.asarray(image.convert("RGB"))

    def store(self) -> int:
        """The viewer's own command that stores its segmentation; returns the HTTP status of its STOW."""
        self.page.evaluate(_STORE)
        save = self.page.get_by_text("Save", exact=True).last
        save.wait_for(timeout=TIMEOUT)
        with self.page.expect_response(lambda answer: _is_stow(answer), timeout=TIMEOUT) as waiting:
            save.click()
        self.page.evaluate("window.stored")
        return int(waiting.value.status)


_POINTS = (
    "cornerstoneTools.annotation.state.getAllAnnotations()"
    ".filter(annotation => annotation.metadata.toolName === 'ProbeMONAILabel').length"
)
_COUNT_UPDATES = """
window.updates = 0;
const wait = setInterval(() => {
  if (!window.cornerstone || !window.cornerstoneTools) return;
  clearInterval(wait);
  cornerstone.eventTarget.addEventListener(cornerstoneTools.Enums.Events.SEGMENTATION_DATA_MODIFIED,
    () => { window.updates += 1; });
}, 100);
"""


@dataclass(frozen=True)
class Answer:
    """The request that Run sent, and the status it was answered with."""

    status: int
    params: dict[str, Any]


def run_together(*viewers: Viewer) -> list[Answer]:
    """Every user presses Run before the first one has an answer; returns when all masks are drawn."""
    before = [each.page.evaluate("window.updates") for each in viewers]
    with ExitStack() as stack:
        waiting = [
            stack.enter_context(each.page.expect_response("**/infer/**", timeout=PATIENCE))
            for each in viewers
        ]
        for each in viewers:
            each.tab.locator("button.actionButton").first.click()
    answers = []
    for each, awaited, updates in zip(viewers, waiting, before, strict=True):
        response = awaited.value
        sent = response.request.post_data or ""
        params = json.loads(sent[sent.index("{") : sent.rindex("}") + 1])
        if response.ok:
            each.page.wait_for_function(f"window.updates > {updates}", timeout=TIMEOUT)
            each.page.wait_for_timeout(500)
        answers.append(Answer(response.status, params))
    return answers


@contextmanager
def viewer(browser: Browser, url: str) -> Iterator[Viewer]:
    """A new user of the server at `url`: their own profile, their own window."""
    context = browser.new_context(viewport={"width": 1500, "height": 900})
    context.add_init_script(_COUNT_UPDATES)
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    try:
        yield Viewer(page, url)
    finally:
        context.close()


def _is_stow(answer: Any) -> bool:
    return bool(answer.request.method == "POST" and answer.url.partition("?")[0].endswith("/studies"))
