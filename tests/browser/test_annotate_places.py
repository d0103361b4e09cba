"""The panel in places of all kinds: series that lie askew, a path in the address, hands without a mouse."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy

import httpx
import numpy as np
import pytest
import uvicorn
from playwright.sync_api import Browser
from pydicom.uid import generate_uid
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tests.browser.annotate import panel
from tests.browser.conftest import Site
from tests.browser.test_annotate import inside, largest, open_flat

from medsa.demo.orthanc import free_port
from medsa.demo.studies import DemoStudy, abdomen, stow
from medsa.evaluation import dice


@pytest.fixture
def new_window(browser: Browser, site: Site) -> Iterator[Callable]:
    """Opens a user's window on the server, or on another address."""
    context = browser.new_context(viewport={"width": 1500, "height": 900})
    yield lambda url=site.server.url: panel(context, url)
    context.close()


def moved(study: DemoStudy, place: Callable[[np.ndarray], np.ndarray], orientation: list[float]) -> DemoStudy:
    """The same slices as a study of its own, each at `place` of where it was, all with `orientation`."""
    uids = {name: generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")}
    slices = []
    for each in study.datasets:
        dataset = deepcopy(each)
        for name, uid in uids.items():
            setattr(dataset, name, uid)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset.ImageOrientationPatient = orientation
        position = place(np.array(each.ImagePositionPatient, float))
        dataset.ImagePositionPatient = [f"{value:.6f}" for value in position]
        slices.append(dataset)
    return DemoStudy(study.name, tuple(slices), study.truth)


def oblique() -> DemoStudy:
    """A drawn CT, turned by 25 degrees about the patient's left-right axis."""
    c, s = np.cos(np.radians(25)), np.sin(np.radians(25))
    turn = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    return moved(abdomen((96, 96, 12)), lambda at: turn @ at, [1, 0, 0, 0, round(c, 8), round(s, 8)])


def tilted() -> DemoStudy:
    """A drawn CT whose slices stay upright while each begins further forward: a tilted gantry."""
    study = abdomen((96, 96, 12))
    upright = list(study.datasets[0].ImageOrientationPatient)
    return moved(study, lambda at: at + np.array([0, 0.3 * at[2], 0]), upright)


def test_a_series_that_lies_obliquely_gets_its_mask_in_the_right_place(
    new_window: Callable, site: Site
) -> None:
    study, organ = oblique(), "liver"
    stow(site.orthanc.dicomweb_url, study.datasets)
    k = largest(study, organ)
    with new_window() as window:
        open_flat(window, study)
        window.choose(organ)
        window.click(inside(study, organ, k))
        assert dice(window.mask(organ)[:, :, k], study.truth[organ][:, :, k]) > 0.6
        window.save()


def test_a_tilted_gantry_is_refused_with_a_sentence_or_drawn_in_its_place(
    new_window: Callable, site: Site
) -> None:
    study, organ = tilted(), "liver"
    stow(site.orthanc.dicomweb_url, study.datasets)
    k = largest(study, organ)
    with new_window() as window:
        window.page.goto(f"{window.url}/ohif/medsa?StudyInstanceUIDs={study.study_uid}")
        window.page.wait_for_function("window.medsa?.said || window.medsa?.work")
        if window.page.evaluate("Boolean(medsa.work)"):
            window.ready()
            window.switch("Volume", False)
            window.choose(organ)
            window.click(inside(study, organ, k))
            assert not window.mask(organ).any()
        window.wait_said("3D Slicer")


def test_everything_can_be_done_with_the_keyboard(new_window: Callable, new_study: Callable) -> None:
    study = new_study()
    with new_window() as window:
        open_flat(window, study)
        key = window.page.keyboard.press
        key("]"), key("["), key("c")
        start = window.page.evaluate("medsa.cursor.voxel")
        key("ArrowRight"), key("Shift+ArrowDown")
        assert window.page.evaluate("medsa.cursor.voxel") == [start[0] + 1, start[1] + 10, start[2]]
        i, j, k = inside(study, "liver", largest(study, "liver"))
        for name, steps in (("Right", i - start[0] - 1), ("Down", j - start[1] - 10)):
            back = {"Right": "Left", "Down": "Up"}[name]
            for _ in range(abs(steps)):
                key(f"Arrow{name if steps > 0 else back}")
        for _ in range(abs(k - start[2])):
            key("PageUp" if k > start[2] else "PageDown")
        assert window.page.evaluate("medsa.cursor.voxel") == [i, j, k]
        key("Space")
        window.wait()
        assert dice(window.mask("object")[:, :, k], study.truth["liver"][:, :, k]) > 0.6
        key("Control+z")
        assert not window.mask("object").any()
        key("Control+y")
        assert window.mask("object").any()
        key("Enter")
        assert window.prompts() == []
        key("e"), key("Space")
        assert not window.mask("object")[i, j, k]
        key("Control+z")
        assert window.mask("object")[i, j, k]
        key("?")
        window.page.get_by_role("dialog", name="Keyboard shortcuts").wait_for()
        key("Escape")
        key("Control+s")
        window.wait_said("Saved as DICOM SEG")


def test_another_viewer_is_told_what_it_lacks_and_what_to_do(new_window: Callable, site: Site) -> None:
    with new_window() as window:
        window.page.add_init_script(LATER_VIEWER)
        window.page.goto(f"{window.url}/ohif/medsa?StudyInstanceUIDs={site.studies['abdomen'].study_uid}")
        told = window.page.locator(".medsa-advice")
        told.wait_for()
        assert "it has no cornerstone.getEnabledElements" in told.inner_text()
        assert "Install MONAI Label 0.8.5" in told.inner_text()


def test_what_leaves_this_machine_and_what_fails_in_our_files_is_noticed(new_window: Callable) -> None:
    with new_window() as window:
        broken = "setTimeout(() => missing()); fetch('http://192.0.2.1/').catch(() => {});"
        window.page.route("**/*", lambda route: route.abort())
        window.page.route(
            "**/ohif/medsa-panel/broken.mjs",
            lambda route: route.fulfill(body=broken, content_type="text/javascript"),
        )
        page = '<script type="module" src="medsa-panel/broken.mjs"></script>'
        window.page.route("**/ohif/page", lambda route: route.fulfill(body=page, content_type="text/html"))
        with window.page.expect_request("http://192.0.2.1/"), window.page.expect_event("pageerror"):
            window.page.goto(f"{window.url}/ohif/page")
        assert any("missing is not defined" in one for one in window.wrong)
        assert any("left this machine: http://192.0.2.1/" in one for one in window.wrong)
        window.wrong.clear()


def test_every_button_of_the_panel_has_a_name(new_window: Callable, site: Site) -> None:
    with new_window() as window:
        window.open_study(site.studies["abdomen"].study_uid)
        for summary in window.page.locator(".medsa-more summary:visible").all():
            summary.click()
        window.page.wait_for_function("document.querySelector('.medsa-facts').children.length > 0")
        names = window.page.evaluate(
            "[...document.querySelectorAll('.medsa-panel :is(button, select, input, progress)')].map(one =>"
            " one.getAttribute('aria-label') || one.innerText || one.labels?.[0]?.innerText || '')"
        )
        assert len(names) > 40
        assert all(name.strip() for name in names)


LATER_VIEWER = """
let bundled;
Object.defineProperty(window, 'cornerstone', {
  get: () => bundled, set: value => { bundled = {...value, getEnabledElements: undefined}; },
});
"""
BULK = """async study => {
  const [first] = await (await fetch(`../proxy/dicom/wado/studies/${study}/metadata`)).json();
  const told = first['7FE00010'].BulkDataURI;
  const link = config.dataSources[0].configuration.bulkDataURI.transform(told);
  return [told, link, (await fetch(link)).status];
}"""


@contextmanager
def proxied(server: str, prefix: str) -> Iterator[str]:
    """A reverse proxy that has `server` under a path; its address with the path."""

    async def forward(request: Request) -> Response:
        path = request.url.path.removeprefix(prefix)
        host = request.headers["host"]
        sent = {name: value for name, value in request.headers.items() if name not in ("host", "connection")}
        async with httpx.AsyncClient(timeout=300, trust_env=False) as client:
            answer = await client.request(
                request.method,
                f"{server}{path}?{request.url.query}",
                headers={**sent, "x-forwarded-host": host, "accept-encoding": "identity"},
                content=await request.body(),
            )
        dropped = ("content-length", "transfer-encoding", "connection")
        kept = {name: value for name, value in answer.headers.items() if name not in dropped}
        return Response(answer.content, answer.status_code, kept)

    methods = ["GET", "POST", "PUT", "DELETE", "HEAD"]
    app = Starlette(routes=[Route(prefix + "/{path:path}", forward, methods=methods)])
    port = free_port()
    http = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=http.run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}{prefix}"
    finally:
        http.should_exit = True
        thread.join()


def test_behind_a_proxy_with_a_path_all_of_it_works(
    new_window: Callable, new_study: Callable, site: Site
) -> None:
    study, organ = new_study(), "liver"
    k = largest(study, organ)
    with proxied(site.server.url, "/hospital/label") as url, new_window(url) as window:
        asked = []
        window.page.on("request", lambda request: asked.append(request.url))
        open_flat(window, study)
        window.choose(organ)
        window.click(inside(study, organ, k))
        assert dice(window.mask(organ)[:, :, k], study.truth[organ][:, :, k]) > 0.6
        window.save()
        outside = [one for one in asked if one.startswith("http") and not one.startswith(url)]
        assert outside == []
        assert any(re.search(r"/hospital/label/proxy/dicom/wado/", one) for one in asked)
        told, link, status = window.page.evaluate(BULK, study.study_uid)
        assert told.startswith(site.server.url)
        assert link.startswith(f"{url}/proxy/dicom/wado/studies/{study.study_uid}/")
        assert status == 200
