"""An annotator's day in OHIF: box, live clicks, undo, labels, and what is on the screen after each."""

import re
from collections.abc import Iterator

import numpy as np
import pytest
from playwright.sync_api import Browser
from skimage.measure import find_contours
from tests.browser.annotate import MAIN, THIRD, Panel, panel
from tests.browser.conftest import Site
from tests.browser.ohif import PATIENCE

from medsa.demo.studies import DemoStudy
from medsa.evaluation import dice
from medsa.prompts.annotator import first_click


@pytest.fixture
def window(browser: Browser, site: Site) -> Iterator[Panel]:
    """A user's window in our mode, following slices only."""
    context = browser.new_context(viewport={"width": 1500, "height": 900})
    with panel(context, site.server.url) as found:
        yield found
    context.close()


def open_flat(window: Panel, study: DemoStudy) -> None:
    """Open a study; prompts run on their slice alone."""
    window.open_study(study.study_uid)
    window.switch("Volume", False)


def largest(study: DemoStudy, organ: str) -> int:
    """The slice on which most is seen of an organ."""
    return int(study.truth[organ].sum(axis=(0, 1)).argmax())


def inside(study: DemoStudy, organ: str, k: int) -> tuple[int, int, int]:
    """(i, j, k) of the organ's deepest point on a slice."""
    i, j = first_click(study.truth[organ][:, :, k]).index
    return i, j, k


def around(study: DemoStudy, organ: str, k: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Corners of the box around an organ on a slice."""
    i, j = np.nonzero(study.truth[organ][:, :, k])
    return (int(i.min()), int(j.min()), k), (int(i.max()), int(j.max()), k)


def test_a_box_becomes_a_mask_on_the_screen(window: Panel, site: Site) -> None:
    study, organ = site.studies["abdomen"], "spleen"
    k = largest(study, organ)
    open_flat(window, study)
    window.choose(organ)
    window.place(inside(study, organ, k))
    before = window.pixels(MAIN)
    window.box(*around(study, organ, k))

    mask = window.mask(organ)
    assert set(np.flatnonzero(mask.any(axis=(0, 1)))) == {k}
    assert dice(mask[:, :, k], study.truth[organ][:, :, k]) > 0.8
    changed = np.abs(window.pixels(MAIN) - before).max(axis=2) > 20
    assert changed.mean() > 0.003
    (i, j, _), _ = around(study, organ, k)
    assert window.prompts() == [f"□\n{i}, {j} · slice {window.slice_number()}"]


def test_three_live_clicks_then_undo_twice_and_redo_once(window: Panel, site: Site) -> None:
    study, organ = site.studies["abdomen"], "liver"
    k = largest(study, organ)
    i, j, _ = inside(study, organ, k)
    open_flat(window, study)
    window.choose(organ)
    masks = []
    for shift in (0, 6, 12):
        window.click((i + shift, j, k))
        masks.append(window.mask(organ))
    assert all(mask.any() for mask in masks)
    assert len(window.prompts()) == 3
    window.page.keyboard.press("Control+z")
    window.page.keyboard.press("Control+z")
    np.testing.assert_array_equal(window.mask(organ), masks[0])
    assert len(window.prompts()) == 1
    window.page.keyboard.press("Control+Shift+Z")
    np.testing.assert_array_equal(window.mask(organ), masks[1])
    assert len(window.prompts()) == 2
    window.page.keyboard.press("Control+z")
    window.page.keyboard.press("Control+z")
    assert not window.mask(organ).any()
    assert window.prompts() == []


def test_a_click_off_the_object_takes_away_and_prompts_go_one_by_one(window: Panel, site: Site) -> None:
    study, organ = site.studies["abdomen"], "liver"
    k = largest(study, organ)
    open_flat(window, study)
    window.choose(organ)
    window.click(inside(study, organ, k))
    first = window.mask(organ)
    edge = tuple(int(n) for n in np.argwhere(first)[0])
    window.click(edge, modifier="Shift")
    assert not window.mask(organ)[edge]
    assert [text[0] for text in window.prompts()] == ["+", "−"]
    window.page.get_by_role("button", name="Remove the exclude").click()
    window.wait()
    assert window.mask(organ)[edge]
    assert [text[0] for text in window.prompts()] == ["+"]


def test_a_scribble_and_a_lasso_are_points_along_and_inside_them(window: Panel, site: Site) -> None:
    study, k = site.studies["abdomen"], largest(site.studies["abdomen"], "liver")
    truth = study.truth["liver"][:, :, k]
    i, j, _ = inside(study, "liver", k)
    open_flat(window, study)
    window.choose("liver")
    window.drag((i - 8, j, k), (i, j + 4, k), (i + 8, j, k))
    (scribbled,) = window.asked
    assert len(scribbled["foreground"]) > 2
    assert scribbled["background"] == []
    assert scribbled["label"] == "liver"
    assert scribbled["client_id"]
    assert [float(value) for value in scribbled["window"].split(",")] == pytest.approx([-160, 240], abs=1)
    for x, y, z in scribbled["foreground"]:
        assert abs(x - i) <= 9
        assert j - 1 <= y <= j + 5
        assert z == k
    assert window.mask("liver")[:, :, k].sum() > 0.3 * truth.sum()
    assert len(window.prompts()) == 1
    window.page.keyboard.press("Control+z")

    window.page.keyboard.press("f")
    outline = find_contours(np.pad(truth, 1), 0.5)[0][::4].round().astype(int) - 1
    window.drag(*((*map(int, point), k) for point in outline.clip(0)))
    points = window.asked[-1]["foreground"]
    assert len(points) == 8
    assert all(truth[x, y] for x, y, _ in points)
    assert dice(window.mask("liver")[:, :, k], truth) > 0.8
    before = window.mask("liver")
    window.drag((i - 5, j - 5, k), (i + 5, j - 5, k), (i + 5, j + 5, k), (i - 5, j + 5, k), modifier="Shift")
    carved = window.asked[-1]["background"]
    assert all(abs(x - i) <= 5 and abs(y - j) <= 5 for x, y, _ in carved)
    assert [text[0] for text in window.prompts()] == ["+", "−"]
    after = window.mask("liver")
    assert before[i, j, k]
    assert not any(after[x, y, k] for x, y, _ in carved)


def test_the_brush_and_the_eraser_change_what_they_touch_and_nothing_else(window: Panel, site: Site) -> None:
    study, k = site.studies["abdomen"], largest(site.studies["abdomen"], "liver")
    i, j, _ = inside(study, "liver", k)
    open_flat(window, study)
    window.choose("liver")
    window.page.keyboard.press("b")
    window.drag((i, j, k), (i + 10, j, k))
    painted = window.mask("liver")
    assert set(np.flatnonzero(painted.any(axis=(0, 1)))) == {k}
    assert painted[i : i + 11, j, k].all()
    assert not painted[: i - 10].any()
    assert not painted[i + 21 :].any()
    assert not painted[:, : j - 10].any()
    window.choose("spleen")
    window.page.keyboard.press("e")
    window.drag((i, j, k), (i + 10, j, k))
    np.testing.assert_array_equal(window.mask("liver"), painted)
    window.choose("liver")
    window.drag((i + 5, j, k), (i + 5, j, k))
    erased = painted & ~window.mask("liver")
    assert erased[i + 5, j, k]
    assert not erased[i, j, k]
    assert window.asked == []
    window.page.keyboard.press("Control+z")
    np.testing.assert_array_equal(window.mask("liver"), painted)
    window.page.keyboard.press("Control+z")
    assert not window.mask("liver").any()


def test_the_slice_comes_before_the_volume_and_a_newer_prompt_ends_the_older_request(
    window: Panel, site: Site
) -> None:
    study, organ = site.studies["abdomen"], "left kidney"
    k = largest(study, organ)
    voxel = inside(study, organ, k)
    window.open_study(study.study_uid)
    window.choose(organ)
    held, ended = [], []
    window.page.route("**/infer/medsa_3d*", lambda route: held.append(route))
    window.page.on("requestfailed", lambda request: ended.append(request))
    window.click(voxel, wait=False)
    window.page.wait_for_function("medsa.runner.state.busy === 'volume'", timeout=PATIENCE)
    assert [asked["model"] for asked in window.asked] == ["medsa_2d", "medsa_3d"]
    first = window.mask(organ)
    assert set(np.flatnonzero(first.any(axis=(0, 1)))) == {k}
    assert "slice" in window.page.locator(".medsa-state-text").inner_text()
    assert "agree" not in window.page.locator(".medsa-state-text").inner_text()

    window.click((voxel[0] + 2, voxel[1], k), wait=False)
    window.page.wait_for_function(
        "medsa.work.active.object.prompts.length === 2 && medsa.runner.state.busy === 'volume'",
        timeout=PATIENCE,
    )
    older, newer = held
    assert older.request in ended
    assert newer.request not in ended
    newer.continue_()
    window.wait()
    assert [len(asked["foreground"]) for asked in window.asked] == [1, 1, 2, 2]
    mask = window.mask(organ)
    assert np.count_nonzero(mask.any(axis=(0, 1))) > 5
    assert dice(mask, study.truth[organ]) > 0.5
    told = window.page.locator(".medsa-state-text").inner_text()
    assert re.fullmatch(r"slice [\d.]+ m?s · volume [\d.]+ m?s · agree [01]\.\d\d · starter", told)


def test_without_live_nothing_runs_until_run_is_pressed(window: Panel, site: Site) -> None:
    study, organ = site.studies["abdomen"], "liver"
    k = largest(study, organ)
    i, j, _ = inside(study, organ, k)
    open_flat(window, study)
    window.choose(organ)
    window.switch("Live", False)
    window.click((i, j, k))
    window.click((i + 6, j, k))
    assert window.asked == []
    assert not window.mask(organ).any()
    window.button("Run").click()
    window.page.wait_for_function("medsa.work.counts[medsa.work.active.index] > 0", timeout=PATIENCE)
    (asked,) = window.asked
    assert len(asked["foreground"]) == 2
    assert window.mask(organ)[i, j, k]


def test_labels_leave_one_another_alone_unless_told_otherwise(window: Panel, site: Site) -> None:
    study, k = site.studies["abdomen"], largest(site.studies["abdomen"], "liver")
    open_flat(window, study)
    window.choose("liver")
    window.click(inside(study, "liver", k))
    liver = window.mask("liver")
    window.choose("lesion")
    window.click(inside(study, "liver", k))
    np.testing.assert_array_equal(window.mask("liver"), liver)
    window.page.keyboard.press("Control+z")
    window.switch("Overwrite", True)
    window.click(inside(study, "liver", k))
    lesion = window.mask("lesion")
    assert (lesion & liver).sum() > 0.9 * liver.sum()
    assert not (window.mask("liver") & lesion).any()
    window.page.keyboard.press("Control+z")
    np.testing.assert_array_equal(window.mask("liver"), liver)
    before = window.pixels(MAIN)
    window.page.get_by_role("button", name="Hide liver").click()
    window.page.wait_for_timeout(1500)
    assert (np.abs(window.pixels(MAIN) - before).max(axis=2) > 20).mean() > 0.003


@pytest.mark.parametrize(
    ("name", "organ", "plane"), [("coronal", "right kidney", MAIN), ("abdomen", "liver", THIRD)]
)
def test_a_click_means_its_voxel_in_every_plane(
    name: str, organ: str, plane: str, window: Panel, site: Site
) -> None:
    study = site.studies[name]
    voxel = inside(study, organ, largest(study, organ))
    open_flat(window, study)
    window.choose(organ)
    window.click(voxel, plane)
    mask = window.mask(organ)
    assert set(np.flatnonzero(mask.any(axis=(0, 1)))) <= {voxel[2] - 1, voxel[2], voxel[2] + 1}
    k = int(np.flatnonzero(mask.any(axis=(0, 1)))[0])
    assert dice(mask[:, :, k], study.truth[organ][:, :, k]) > 0.6
