"""Our panel in OHIF as an annotator uses it: buttons, keys, the pointer; masks as the viewer holds them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import BrowserContext, Locator, Page, Request
from tests.browser.ohif import PATIENCE, TIMEOUT

MAIN, SECOND, THIRD = "medsa-main", "medsa-second", "medsa-third"

_PLACE = """([plane, voxel]) => {
  const {viewport} = medsa.screen.planes().find(one => one.id === plane);
  medsa.screen.jump(voxel);
  const [x, y] = medsa.screen.canvasOf(viewport, voxel), frame = viewport.element.getBoundingClientRect();
  return [frame.x + x, frame.y + y];
}"""
_LABELMAP = """() => {
  const volume = services.segmentationService.getLabelmapVolume(`medsa-${medsa.work.series}`);
  const voxels = volume.voxelManager.getCompleteScalarDataArray();
  const runs = [];
  for (let start = 0, n = 1; n <= voxels.length; n++)
    if (voxels[n] !== voxels[start]) { runs.push(voxels[start], n - start); start = n; }
  const indices = Object.fromEntries(medsa.work.labels.map(label => [label.name, label.index]));
  return {shape: volume.dimensions, runs, indices};
}"""


@dataclass
class Panel:
    """One window with our mode.

    `wrong` collects our files' errors and requests that leave this machine, `asked` what the model was asked.
    """

    page: Page
    url: str
    wrong: list[str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)

    def open_study(self, study_uid: str) -> None:
        """The study in the mode Annotate, ready for prompts."""
        self.page.goto(f"{self.url}/ohif/medsa?StudyInstanceUIDs={study_uid}", timeout=TIMEOUT)
        self.ready()

    def ready(self) -> None:
        """Wait until the panel and the images are there."""
        self.page.locator(".medsa-panel").wait_for(timeout=TIMEOUT)
        self.page.wait_for_function(
            "window.medsa?.work && medsa.screen.volume.loadStatus?.loaded"
            " && medsa.screen.planes().length === 3",
            timeout=PATIENCE,
        )
        self.page.wait_for_function(
            "services.segmentationService.getLabelmapVolume(`medsa-${medsa.work.series}`)", timeout=TIMEOUT
        )

    def switch(self, name: str, on: bool) -> None:
        """Live, Volume or Overwrite."""
        button = self.page.get_by_role("switch", name=name)
        if (button.get_attribute("aria-checked") == "true") != on:
            button.click()

    def button(self, name: str) -> Locator:
        return self.page.locator(".medsa-panel").get_by_role(
            "button", name=re.compile(rf"^{re.escape(name)}")
        )

    def choose(self, label: str) -> None:
        self.page.locator(".medsa-label", has_text=re.compile(rf"^{label}")).click()

    def place(self, voxel: Sequence[int], plane: str = MAIN) -> tuple[float, float]:
        """Show the voxel; where it is on the page."""
        x, y = self.page.evaluate(_PLACE, [plane, list(voxel)])
        return x, y

    def click(
        self, voxel: Sequence[int], plane: str = MAIN, *, modifier: str = "", wait: bool = True
    ) -> None:
        """A prompt with the present tool; `modifier` is held down meanwhile."""
        x, y = self.place(voxel, plane)
        if modifier:
            self.page.keyboard.down(modifier)
        self.page.mouse.click(x, y)
        if modifier:
            self.page.keyboard.up(modifier)
        if wait:
            self.wait()

    def box(self, low: Sequence[int], high: Sequence[int]) -> None:
        """Drag a box on the large plane, and wait for its mask."""
        self.page.keyboard.press("d")
        self.drag(low, [(a + b) // 2 for a, b in zip(low, high, strict=True)], high)

    def drag(self, *voxels: Sequence[int], modifier: str = "") -> None:
        """Press, move and let go along voxels of one slice of the large plane, and wait for the mask."""
        (x, y), *rest = (self.place(voxel) for voxel in voxels)
        self.page.mouse.move(x, y)
        if modifier:
            self.page.keyboard.down(modifier)
        self.page.mouse.down()
        for x, y in rest:
            self.page.mouse.move(x, y)
        self.page.mouse.up()
        if modifier:
            self.page.keyboard.up(modifier)
        self.wait()

    def wait(self) -> None:
        """Until nothing is being computed."""
        self.page.wait_for_function("!medsa.runner.state.busy && !medsa.saving", timeout=PATIENCE)

    def said(self) -> str:
        """The sentence below the state line."""
        return (
            self.page.locator(".medsa-said").inner_text()
            if self.page.locator(".medsa-said").is_visible()
            else ""
        )

    def save(self) -> None:
        """Press Save and wait for the store's answer."""
        self.button("Save").click()
        self.wait_said("Saved as DICOM SEG")
        self.wait()

    def reload(self) -> None:
        """As F5 does, once what is unsaved is in the browser's database."""
        self.page.evaluate("medsa.keepNow()")
        self.page.reload(timeout=TIMEOUT)
        self.ready()

    def wait_said(self, part: str) -> None:
        self.page.locator(".medsa-said", has_text=part).wait_for(timeout=PATIENCE)

    def slice_number(self) -> int:
        """The number of the large plane's slice as the viewer itself shows it."""
        shown = self.page.locator(f"[data-viewport-uid='{MAIN}']").locator("xpath=ancestor::*[2]")
        return int(re.search(r"\((\d+)/\d+\)", shown.inner_text()).group(1))

    def prompts(self) -> list[str]:
        """The prompts that the panel lists."""
        return self.page.locator(".medsa-prompt-list .medsa-where").all_inner_texts()

    def labelmap(self) -> tuple[NDArray[np.uint8], dict[str, int]]:
        """(I, J, K) as cornerstone holds it for the screen, and the value of each label."""
        found = self.page.evaluate(_LABELMAP)
        values, lengths = np.array(found["runs"]).reshape(-1, 2).T
        voxels = np.repeat(values.astype(np.uint8), lengths).reshape(found["shape"], order="F")
        return voxels, found["indices"]

    def mask(self, label: str) -> NDArray[np.bool_]:
        """(I, J, K): the voxels of one label on the screen."""
        voxels, indices = self.labelmap()
        return voxels == indices[label]

    def pixels(self, plane: str = MAIN) -> NDArray[np.int64]:
        """A plane as it looks now, (height, width, 3)."""
        element = self.page.locator(f"[data-viewport-uid='{plane}']").first
        with Image.open(BytesIO(element.screenshot())) as image:
            return np.asarray(image.convert("RGB")).astype(int)


@contextmanager
def panel(context: BrowserContext, url: str) -> Iterator[Panel]:
    """A new window of one user; on leaving it, nothing may have gone wrong in it."""
    page = context.new_page()
    page.set_default_timeout(TIMEOUT)
    found = Panel(page, url)
    page.on("pageerror", lambda error: _listen(found, f"{error} {error.stack}"))
    page.on("console", lambda message: _hear(found, message))
    page.on("request", lambda request: _watch(found, request))
    page.on("dialog", lambda dialog: dialog.accept())
    yield found
    assert found.wrong == []
    page.close()


def _hear(found: Panel, message: Any) -> None:
    if message.type == "error":
        _listen(found, f"{message.text} ({message.location.get('url', '')})")


def _listen(found: Panel, error: str) -> None:
    """The bundle has errors of its own, such as when an image comes late; ours name one of our files."""
    if "/medsa-panel/" in error or "/app-config.js" in error:
        found.wrong.append(error)


def _watch(found: Panel, request: Request) -> None:
    if not re.match(r"(https?://127\.0\.0\.1[:/]|data:|blob:)", request.url):
        found.wrong.append(f"left this machine: {request.url}")
    model = re.search(r"/infer/(\w+)", request.url)
    if model:
        body = request.post_data or ""
        params = json.loads(body[body.index("{") : body.rindex("}") + 1])
        found.asked.append({"model": model[1], **params})
