"""What becomes of a person's work: saved, kept over reloads and a dead server, corrected; what is next."""

import json
import re
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import highdicom
import httpx
import numpy as np
import pydicom
import pytest
from playwright.sync_api import Browser, BrowserContext, Response
from tests.browser.annotate import Panel, panel
from tests.browser.conftest import Site
from tests.browser.ohif import PATIENCE, TIMEOUT
from tests.browser.test_annotate import inside, largest, open_flat

from medsa.data.dicom import volume_from_datasets
from medsa.data.write import write_mask
from medsa.demo.server import Server
from medsa.demo.studies import DemoStudy
from medsa.evaluation import dice
from medsa.training.versions import VersionStore, versions_folder

SEG_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    """One user: what the browser keeps is kept as long as this."""
    context = browser.new_context(viewport={"width": 1500, "height": 900})
    yield context
    context.close()


@pytest.fixture
def window(context: BrowserContext, site: Site) -> Iterator[Panel]:
    """The user's window."""
    with panel(context, site.server.url) as found:
        yield found


def stored_segs(site: Site, study: DemoStudy) -> list[pydicom.Dataset]:
    """The SEGs of a study in Orthanc, whole, oldest first."""
    url = f"{site.orthanc.dicomweb_url}/studies/{study.study_uid}"
    segs = []
    for found in httpx.get(f"{url}/instances", params={"SOPClassUID": SEG_STORAGE}).json():
        series, instance = (found[tag]["Value"][0] for tag in ("0020000E", "00080018"))
        accept = {"Accept": 'multipart/related; type="application/dicom"'}
        body = httpx.get(f"{url}/series/{series}/instances/{instance}", headers=accept).content
        start, end = body.index(b"\r\n\r\n") + 4, body.rindex(b"\r\n--")
        segs.append(pydicom.dcmread(BytesIO(body[start:end])))
    return sorted(segs, key=lambda seg: (seg.ContentDate, seg.ContentTime))


def save(site: Site, study: DemoStudy, organ: str, folder: Path) -> None:
    """Save what is true of an organ, as 3D Slicer would."""
    path, volume = folder / "label.nrrd", volume_from_datasets(study.datasets)
    write_mask(path, np.asfortranarray(study.truth[organ].astype(np.uint8)), volume)
    httpx.put(
        f"{site.server.url}/datastore/label",
        params={"image": study.series_uid},
        data={"params": json.dumps({"label_info": [{"name": organ, "idx": 1}]})},
        files={"label": (path.name, path.read_bytes())},
        timeout=TIMEOUT / 1000,
    ).raise_for_status()


def read_back(seg: pydicom.Dataset, study: DemoStudy) -> dict[str, np.ndarray]:
    """Label -> (I, J, K), as highdicom reads a SEG on the slices of its series, lowest first."""
    found = highdicom.seg.Segmentation.from_dataset(seg)
    slices = sorted(study.datasets, key=lambda each: float(each.ImagePositionPatient[2]))
    pixels = found.get_pixels_by_source_instance(
        [each.SOPInstanceUID for each in slices], assert_missing_frames_are_empty=True
    )
    names = [str(found.get_segment_description(n).segment_label) for n in found.segment_numbers]
    return {name: pixels[..., n].transpose(2, 1, 0) > 0 for n, name in enumerate(names)}


def test_what_is_saved_is_what_was_on_the_screen(window: Panel, site: Site, new_study: Callable) -> None:
    study = new_study()
    open_flat(window, study)
    organs = ("liver", "spine")
    for organ in organs:
        window.choose(organ)
        window.click(inside(study, organ, largest(study, organ)))
    shown = {organ: window.mask(organ) for organ in organs}
    millilitre = 1000 / volume_from_datasets(study.datasets).spacing.prod()
    row = window.page.locator(".medsa-label", has_text="liver").inner_text()
    volume = re.search(r"([\d.]+) ml", row)
    assert volume is not None
    assert float(volume[1]) == pytest.approx(shown["liver"].sum() / millilitre, abs=0.5)
    window.page.get_by_label("Your name").fill("Lovelace^Ada")
    window.save()
    assert f"liver {volume[0]}" in window.said()

    (seg,) = stored_segs(site, study)
    stored = read_back(seg, study)
    assert set(stored) == set(organs)
    for organ in organs:
        np.testing.assert_array_equal(stored[organ], shown[organ])
    assert seg.ContentCreatorName == "Lovelace^Ada"
    assert {segment.SegmentAlgorithmType for segment in seg.SegmentSequence} == {"SEMIAUTOMATIC"}
    codes = {
        segment.SegmentLabel: segment.SegmentedPropertyTypeCodeSequence[0].CodeValue
        for segment in seg.SegmentSequence
    }
    assert codes == {"liver": "10200004", "spine": "421060004"}


def test_a_saved_label_is_loaded_corrected_and_saved_again(
    window: Panel, site: Site, new_study: Callable
) -> None:
    study, organ = new_study(), "liver"
    k = largest(study, organ)
    open_flat(window, study)
    window.choose(organ)
    window.click(inside(study, organ, k))
    first = window.mask(organ)
    window.save()
    window.open_study(study.study_uid)
    window.switch("Volume", False)
    assert not window.mask(organ).any()
    window.page.get_by_text("In the store: 1").click()
    window.button("Load the labels liver").click()
    window.wait_said("Loaded: liver")
    np.testing.assert_array_equal(window.mask(organ), first)
    window.choose("spine")
    window.click(inside(study, "spine", k))
    assert window.mask("spine").any()
    window.save()
    older, newer = stored_segs(site, study)
    assert set(read_back(older, study)) == {organ}
    assert set(read_back(newer, study)) == {organ, "spine"}


def test_a_reload_keeps_unsaved_work_and_saving_ends_that(window: Panel, new_study: Callable) -> None:
    study, organ = new_study(), "liver"
    open_flat(window, study)
    window.choose(organ)
    i, j, k = inside(study, organ, largest(study, organ))
    window.click((i, j, k))
    window.click((i + 3, j, k))
    mask, prompts = window.mask(organ), window.prompts()
    warned = []
    window.page.on("dialog", lambda dialog: warned.append(dialog.type))
    window.reload()
    assert warned == ["beforeunload"]
    assert "is here again" in window.said()
    np.testing.assert_array_equal(window.mask(organ), mask)
    assert window.prompts() == prompts
    window.switch("Volume", False)
    edge = tuple(int(n) for n in np.argwhere(mask)[0])
    window.click(edge, modifier="Shift")
    assert not window.mask(organ)[edge]
    window.save()
    window.reload()
    assert warned == ["beforeunload"]
    assert not window.mask(organ).any()


def test_a_new_label_is_the_servers_from_then_on(window: Panel, site: Site, new_study: Callable) -> None:
    study = new_study()
    open_flat(window, study)
    window.page.get_by_label("Find or add a label").fill("hepatic cyst")
    window.page.keyboard.press("Enter")
    window.page.locator(".medsa-label[aria-pressed=true]", has_text="hepatic cyst").wait_for()
    window.click(inside(study, "liver", largest(study, "liver")))
    mask = window.mask("hepatic cyst")
    assert mask.any()
    window.save()
    (seg,) = stored_segs(site, study)
    np.testing.assert_array_equal(read_back(seg, study)["hepatic cyst"], mask)
    assert "hepatic cyst" in httpx.get(f"{site.server.url}/info/").json()["labels"]


def test_next_says_who_chose_and_why_and_opens_a_study_without_a_label(
    window: Panel, site: Site, new_study: Callable
) -> None:
    study, *_ = (new_study() for _ in range(3))  # two that nobody has touched, to be offered
    open_flat(window, study)
    window.choose("liver")
    window.click(inside(study, "liver", largest(study, "liver")))
    offered: list[Response] = []
    window.page.on("response", lambda one: offered.append(one) if "/activelearning/" in one.url else None)
    answer = window.page.locator(".medsa-next")
    window.page.keyboard.press("n")
    answer.get_by_text("This study has unsaved work").wait_for()
    assert answer.get_by_label("Strategy").input_value() == "random"
    assert ": A random image that has no label yet. " in answer.inner_text()
    assert re.search(r"\d+ images have no label yet", answer.inner_text())
    first = offered[-1].json()["id"]
    with window.page.expect_response("**/activelearning/**"):
        answer.get_by_role("button", name="Skip").click()
    window.page.locator("button:enabled", has_text="Next study").wait_for()
    second = offered[-1].json()["id"]
    assert len({first, second, study.series_uid}) == 3
    answer.get_by_role("button", name="Save and open").click()
    window.page.wait_for_url(lambda url: study.study_uid not in url)
    window.ready()
    assert len(stored_segs(site, study)) == 1
    series = window.page.evaluate("medsa.work.series")
    assert series == second
    objects = httpx.get(f"{site.server.url}/datastore/", params={"output": "all"}).json()["objects"]
    assert "final" not in objects[series]["labels"]


def test_a_training_is_started_followed_and_stopped_and_the_gates_word_is_shown(
    window: Panel, site: Site, new_study: Callable, tmp_path: Path
) -> None:
    studies = new_study(), new_study()
    for study in studies:
        save(site, study, "liver", tmp_path)
    versions = VersionStore(versions_folder(site.orthanc.dicomweb_url, "lite_medsam"))
    refused = {"event": "decided", "version": "v0009", "promoted": False, "reasons": ["it listens no more"]}
    versions.log(refused)
    window.open_study(studies[0].study_uid)
    model = window.page.locator("section[aria-label=Model]")
    model.locator("summary").click()
    model.get_by_text("v0009 was refused: it listens no more").wait_for()
    assert re.search(r"Labels\s+\d+, [1-9]\d* new since the last training", model.inner_text())
    model.get_by_role("button", name="Train now").click()
    model.get_by_role("progressbar", name="Training").wait_for()
    model.locator(".medsa-now", has_text=re.compile(r"\w+ … \d+ %")).wait_for(timeout=PATIENCE)
    assert model.get_by_role("button", name="Train now").is_hidden()
    model.get_by_role("button", name="Stop").click()
    model.get_by_text("The training was stopped.").wait_for(timeout=PATIENCE)
    model.get_by_role("button", name="Train now").wait_for()
    assert model.get_by_role("progressbar").is_hidden()


def test_two_windows_of_one_person_do_not_disturb_each_other(
    context: BrowserContext, site: Site, new_study: Callable
) -> None:
    study = new_study()
    k = largest(study, "liver")
    with panel(context, site.server.url) as one, panel(context, site.server.url) as other:
        for window in (one, other):
            open_flat(window, study)
            window.choose("object")
        one.click(inside(study, "liver", k), wait=False)
        other.click(inside(study, "spine", k), wait=False)
        one.wait(), other.wait()
        assert dice(one.mask("object")[:, :, k], study.truth["liver"][:, :, k]) > 0.6
        assert dice(other.mask("object")[:, :, k], study.truth["spine"][:, :, k]) > 0.4
        one.reload()
        assert dice(one.mask("object")[:, :, k], study.truth["liver"][:, :, k]) > 0.6
        for window in (one, other):
            window.page.evaluate("medsa.work.saved()")


def test_a_server_that_dies_is_told_and_work_goes_on_when_it_is_back(
    context: BrowserContext, site: Site, new_study: Callable, tmp_path: Path
) -> None:
    study = new_study()
    k = largest(study, "liver")
    server = Server(site.orthanc.dicomweb_url, tmp_path / "server.log").start()
    try:
        with panel(context, server.url) as window:
            open_flat(window, study)
            window.choose("liver")
            window.click(inside(study, "liver", k))
            liver = window.mask("liver")
            server.stop()
            window.choose("spine")
            window.click(inside(study, "spine", k))
            window.page.get_by_text("The server does not answer. Your work is kept here").wait_for()
            window.button("Save").click()
            window.wait_said("Not saved: the server does not answer")
            np.testing.assert_array_equal(window.mask("liver"), liver)
            server.start()
            window.page.wait_for_function("!medsa.runner.state.lost && !medsa.runner.state.busy")
            window.wait()
            assert window.mask("spine").any()
            np.testing.assert_array_equal(window.mask("liver"), liver)
            window.save()
            window.wrong[:] = [one for one in window.wrong if "ERR_CONNECTION_REFUSED" not in one]
    finally:
        server.stop()
