"""The main job in the viewer that people use: a study opened, an organ clicked, its mask on the screen."""

from collections.abc import Callable
from io import BytesIO

import httpx
import numpy as np
import pydicom
import pytest
from tests.browser.conftest import Site
from tests.browser.ohif import AXIAL, CORONAL, TIMEOUT, Viewer, run_together

from medsa.data.dicom import volume_from_datasets
from medsa.data.seg import read_seg
from medsa.demo.studies import DemoStudy
from medsa.evaluation import dice
from medsa.prompts.annotator import first_click, next_click

SEG_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"


def deepest(study: DemoStudy, organ: str, k: int | None = None) -> tuple[int, int, int]:
    """(i, j, k) of the organ's deepest point on slice k, or on its largest one."""
    truth = study.truth[organ]
    k = int(truth.sum(axis=(0, 1)).argmax()) if k is None else k
    i, j = first_click(truth[:, :, k]).index
    return i, j, k


def open_and_connect(user: Viewer, study: DemoStudy) -> None:
    user.open_study(study.study_uid)
    user.connect()


def test_the_list_shows_the_studies_and_opens_one_in_the_monai_label_mode(user: Viewer, site: Site) -> None:
    page = user.page
    page.goto(f"{user.url}/ohif/?resultsPerPage=100", timeout=TIMEOUT)  # other tests made studies, too
    for name in ("BRAIN", "ABDOMEN", "CORONAL"):
        page.get_by_text(f"DEMO-{name}", exact=True).first.wait_for()
    page.get_by_text("DEMO-ABDOMEN", exact=True).first.click()
    page.get_by_text("MONAI Label").first.click()
    page.wait_for_selector("#monailabelServerURL")
    found = httpx.get(
        f"{site.orthanc.dicomweb_url}/studies", params={"PatientID": "DEMO-ABDOMEN"}, trust_env=False
    ).json()
    assert [uid for entry in found for uid in entry["0020000D"]["Value"] if uid in page.url]  # one of them


def test_the_panel_knows_the_server_on_any_port(user: Viewer, site: Site) -> None:
    user.open_study(site.studies["abdomen"].study_uid)
    assert user.page.input_value("#monailabelServerURL") == f"{site.server.url}/"


def test_the_viewer_shows_only_its_own_patients_studies(user: Viewer, site: Site) -> None:
    answers = []
    user.page.on("response", lambda answer: answers.append(answer) if "/studies?" in answer.url else None)
    user.open_study(site.studies["abdomen"].study_uid)
    user.page.wait_for_load_state("networkidle")
    found = [entry for answer in answers for entry in answer.json()]
    assert {entry["00100020"]["Value"][0] for entry in found} == {"DEMO-ABDOMEN"}
    studies = {entry["0020000D"]["Value"][0] for entry in found}
    assert user.page.get_by_text("01-Jan-2024").count() == len(studies)


@pytest.mark.parametrize(
    ("name", "organ", "at", "plane", "good"),
    [
        ("abdomen", "liver", None, AXIAL, 0.8),
        ("brain", "brain", 70, AXIAL, 0.3),  # one click hardly means all of it
        ("coronal", "right kidney", None, CORONAL, 0.8),
    ],
)
def test_a_click_on_an_organ_draws_its_mask(
    name: str, organ: str, at: int | None, plane: str, good: float, user: Viewer, site: Site
) -> None:
    study = site.studies[name]
    i, j, k = deepest(study, organ, at)
    open_and_connect(user, study)
    user.choose("medsa_2d", organ)
    user.click((i, j, k), plane)
    before = user.pixels(plane)
    answer = user.run()

    assert answer.status == 200
    ((sent_i, sent_j, sent_k),) = answer.params["foreground"]
    assert max(abs(sent_i - i), abs(sent_j - j)) <= 1  # a pixel of the screen is about a voxel
    assert sent_k == k
    mask = user.mask(organ)
    assert mask.shape == study.truth[organ].shape
    assert set(np.flatnonzero(mask.any(axis=(0, 1)))) == {k}
    truth = study.truth[organ][:, :, k]
    assert (mask[:, :, k] * truth).sum() > 0.9 * mask.sum()
    assert dice(mask[:, :, k], truth) > good
    changed = (np.abs(user.pixels(plane).astype(int) - before).max(axis=2) > 20).mean()
    assert changed > 0.003


def test_a_second_click_corrects_the_mask_and_one_off_the_object_takes_away(user: Viewer, site: Site) -> None:
    study, organ = site.studies["abdomen"], "spine"
    i, j, k = deepest(study, organ)
    truth = study.truth[organ][:, :, k]
    open_and_connect(user, study)
    user.choose("medsa_2d", organ)
    user.click((i, j, k))
    user.run()
    first = user.mask(organ)[:, :, k]
    correction = next_click(truth, first)
    assert correction is not None
    kind = "foreground" if correction.positive else "background"
    user.choose_label(organ if correction.positive else "background")
    user.click((*correction.index, k))
    user.choose_label(organ)
    answer = user.run()
    assert np.abs(np.subtract(answer.params[kind][-1], [*correction.index, k])).max() <= 1
    second = user.mask(organ)[:, :, k]
    assert second[correction.index] == correction.positive
    assert dice(second, truth) > dice(first, truth)


def test_the_volume_model_fills_the_organ_slice_by_slice(user: Viewer, site: Site) -> None:
    study, organ = site.studies["abdomen"], "left kidney"
    open_and_connect(user, study)
    user.choose("medsa_3d", organ)
    user.click(deepest(study, organ))
    assert user.run().status == 200
    mask = user.mask(organ)
    assert np.count_nonzero(mask.any(axis=(0, 1))) > 5
    assert dice(mask, study.truth[organ]) > 0.5


def test_two_users_at_once_do_not_disturb_each_other(new_user: Callable[[], Viewer], site: Site) -> None:
    study = site.studies["abdomen"]
    users = new_user(), new_user()
    organs = "liver", "spleen"
    k = int(np.argmin([-min(study.truth[organ][:, :, k].sum() for organ in organs) for k in range(40)]))
    alone = {}
    for user, organ in zip(users, organs, strict=True):
        open_and_connect(user, study)
        user.choose("medsa_2d", "object")
        user.click((*first_click(study.truth[organ][:, :, k]).index, k))
        user.run()
        alone[organ] = user.mask("object")
    for user, organ in zip(users, organs, strict=True):
        assert dice(alone[organ][:, :, k], study.truth[organ][:, :, k]) > 0.5
        np.testing.assert_array_equal(user.mask("object"), alone[organ])
    for user, other in zip(users, reversed(organs), strict=True):
        user.page.get_by_text("Clear All Points").click()
        user.choose_label("lesion")
        user.click((*first_click(study.truth[other][:, :, k]).index, k))
    run_together(*users)
    for user, organ, other in zip(users, organs, reversed(organs), strict=True):
        np.testing.assert_array_equal(user.mask("object"), alone[organ])
        assert dice(user.mask("lesion"), alone[other]) > 0.95


def test_a_mask_stored_by_the_viewer_arrives_in_the_store(user: Viewer, site: Site) -> None:
    study, organ = site.studies["brain"], "brain"
    open_and_connect(user, study)
    user.choose("medsa_2d", organ)
    user.click(deepest(study, organ))
    user.run()
    mask = user.mask(organ)
    assert user.store() == 200

    url = f"{site.orthanc.dicomweb_url}/studies/{study.study_uid}"
    found = httpx.get(f"{url}/instances", params={"SOPClassUID": SEG_STORAGE}).json()
    assert len(found) == 1
    series, instance = (found[0][tag]["Value"][0] for tag in ("0020000E", "00080018"))
    accept = {"Accept": 'multipart/related; type="application/dicom"'}
    body = httpx.get(f"{url}/series/{series}/instances/{instance}", headers=accept).content
    start, end = body.index(b"\r\n\r\n") + 4, body.rindex(b"\r\n--")
    seg = pydicom.dcmread(BytesIO(body[start:end]))
    stored, names = read_seg(seg, volume_from_datasets(study.datasets))
    assert organ in names.values()
    value = next(number for number, name in names.items() if name == organ)
    np.testing.assert_array_equal(stored == value, mask)
    datastore = httpx.get(f"{site.server.url}/datastore/", params={"output": "all"}).json()
    assert study.series_uid in str(datastore)
