"""A volume under several clicks: what is settled stays, what is cancelled leaves nothing, order is none."""

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsa.data.volume import Volume
from medsa.errors import BadInputError, CancelledError
from medsa.prompts.prompt import Prompt
from medsa.sam import build_sam
from medsa.segmenter import Segmenter, Session
from medsa.segmenter.session import State
from medsa.segmenter.volumes import Following, tapering

SHAPE = (32, 28, 7)


@pytest.fixture(scope="module", params=["by memory", "learnt"])
def segmenter(request) -> Iterator[Segmenter]:
    """A small model with random weights, one that follows by memory and one as if it had learnt to."""
    torch.manual_seed(0)
    sam = build_sam("lite_medsam", image_size=64)
    if request.param == "learnt":
        taught = ("point", "box", "mask", "neighbour")
        sam.config = sam.config.model_copy(update={"trained_prompts": taught})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medsa.segmenter.volumes.GOES_ON", -np.inf)
        yield Segmenter(sam)


@pytest.fixture(scope="module")
def volume() -> Volume:
    voxels = np.random.default_rng(0).normal(60, 5, SHAPE)
    voxels[8:24, 7:21, 1:6] += 120
    return Volume(np.asfortranarray(voxels.astype(np.int16)), np.diag([1.0, 1.0, 2.0, 1.0]), "MR")


FIRST = [16, 14, 3]
points = st.tuples(st.integers(0, 31), st.integers(0, 27), st.integers(0, 6)).map(list)


def ask(segmenter, volume, foreground, background=(), session=None, **more) -> np.ndarray:
    prompt = Prompt(foreground=foreground, background=list(background))
    return segmenter.segment_volume(volume, prompt, window="0,255", session=session, **more).mask != 0


@settings(deadline=None, max_examples=8)
@given(clicks=st.lists(st.tuples(points, st.booleans()), min_size=1, max_size=4))
def test_a_click_on_another_slice_never_changes_one_that_was_spoken_about(segmenter, volume, clicks) -> None:
    session, settled = Session(), {3}
    said: dict[bool, list[list[int]]] = {True: [FIRST], False: []}
    before = ask(segmenter, volume, [FIRST], session=session)
    for point, positive in clicks:
        if point in said[not positive] or point[2] == 3:
            continue
        said[positive].append(point)
        after = ask(segmenter, volume, said[True], said[False], session)
        others = sorted(settled - {point[2]})
        assert (after[:, :, others] == before[:, :, others]).all()
        assert after[tuple(point)] == positive
        if before[:, :, point[2]].any() or positive:
            settled.add(point[2])
        before = after


def test_the_same_prompts_and_fewer_of_them_give_the_earlier_answers_back(segmenter, volume) -> None:
    session = Session()
    first = ask(segmenter, volume, [FIRST], session=session)
    second = ask(segmenter, volume, [FIRST, [4, 4, 5]], session=session)
    assert (second != first).any()
    assert (ask(segmenter, volume, [FIRST, [4, 4, 5]], session=session) == second).all()
    assert (ask(segmenter, volume, [FIRST], session=session) == first).all()


def test_a_cancelled_correction_leaves_what_was_there(segmenter, volume) -> None:
    session = Session()
    first = ask(segmenter, volume, [FIRST], session=session)
    with pytest.raises(CancelledError):
        ask(segmenter, volume, [FIRST, [4, 4, 5]], session=session, cancelled=lambda: True)
    assert (ask(segmenter, volume, [FIRST], session=session) == first).all()
    alone = Session()
    ask(segmenter, volume, [FIRST], session=alone)
    expected = ask(segmenter, volume, [FIRST, [4, 4, 5]], session=alone)
    assert (ask(segmenter, volume, [FIRST, [4, 4, 5]], session=session) == expected).all()


def test_a_slice_that_was_clicked_away_stays_away(segmenter, volume, monkeypatch) -> None:
    session, clicks, k = Session(), [FIRST, [12, 9, 5]], 5
    ask(segmenter, volume, [FIRST], session=session)
    ask(segmenter, volume, clicks, session=session)

    def all_of_it(logits, *_args, **_more):
        return {k: np.full_like(logits[k], -6)}

    def everywhere(_self, _k, state, *_args):
        return State(torch.full_like(state.logits, 8), 1.0)

    monkeypatch.setattr("medsa.segmenter.volumes.spread", all_of_it)
    monkeypatch.setattr("medsa.segmenter.volumes.Following._shown", everywhere)
    after = ask(segmenter, volume, clicks, [[13, 9, k]], session)
    assert after[:, :, k].sum() == 1  # the click on it


@pytest.mark.parametrize("segmenter", ["learnt"], indirect=True)
@pytest.mark.parametrize(("look", "slices"), [("first", {0, 1, 2, 3, 4, 5, 6}), ("second", {2, 3, 4, 5, 6})])
def test_an_object_ends_where_the_second_look_denies_it_but_survives_a_gap(
    segmenter, volume, monkeypatch, look, slices
) -> None:
    looks: dict[int, int] = {}

    def shown(_self, k, state, *_args):
        looks[k] = looks.get(k, 0) + 1
        denied = k == 1 and (look == "first" or looks[k] == 2)
        return State(torch.full_like(state.logits, 8), 0.1 if denied else 0.9)

    monkeypatch.setattr("medsa.segmenter.volumes.GOES_ON", 0.4)
    monkeypatch.setattr("medsa.segmenter.volumes.Following._shown", shown)
    assert set(np.flatnonzero(ask(segmenter, volume, [FIRST]).any(axis=(0, 1)))) == slices


@pytest.mark.parametrize("segmenter", ["learnt"], indirect=True)
def test_a_click_beside_what_was_found_is_answered_with_it(segmenter, volume, monkeypatch) -> None:
    def shown(_self, k, state, clicks=None):
        goes_on = k < 5 or (clicks is not None and clicks.foreground)
        return State(state.logits, 0.9 if goes_on else 0.1)

    monkeypatch.setattr("medsa.segmenter.volumes.GOES_ON", 0.4)
    monkeypatch.setattr("medsa.segmenter.volumes.Following._shown", shown)
    session = Session()
    before = ask(segmenter, volume, [FIRST], session=session)
    assert not before[:, :, 5:].any()
    after = ask(segmenter, volume, [FIRST, [*FIRST[:2], 5]], session=session)
    assert (after[:, :, 5] == before[:, :, 4]).all()
    assert not after[:, :, 6].any()


@pytest.mark.parametrize("segmenter", ["learnt"], indirect=True)
def test_a_click_beyond_a_slice_on_which_nothing_is_left_is_answered_with_what_was_found(
    segmenter, volume, monkeypatch
) -> None:
    looks: dict[int, int] = {}

    def shown(_self, k, state, clicks=None):
        looks[k] = looks.get(k, 0) + 1
        logits = torch.full_like(state.logits, -8) if k == 5 and looks[k] == 2 else state.logits
        return State(logits, 0.9 if k < 6 or (clicks is not None and clicks.foreground) else 0.1)

    monkeypatch.setattr("medsa.segmenter.volumes.GOES_ON", 0.4)
    monkeypatch.setattr("medsa.segmenter.volumes.LOOKED_AGAIN", 1)
    monkeypatch.setattr("medsa.segmenter.volumes.Following._shown", shown)
    monkeypatch.setattr("medsa.segmenter.volumes.mixed", lambda one, other, part: other if part == 1 else one)
    session = Session()
    before = ask(segmenter, volume, [FIRST], session=session)
    assert not before[:, :, 5:].any()
    after = ask(segmenter, volume, [FIRST, [*FIRST[:2], 6]], session=session)
    assert (after[:, :, 6] == before[:, :, 4]).all()


@pytest.mark.parametrize("segmenter", ["learnt"], indirect=True)
def test_a_click_beside_what_was_found_is_not_answered_with_something_much_larger(
    segmenter, volume, monkeypatch
) -> None:
    def square(k, clicks=None):
        logits = torch.full((16, 16), -8.0)
        logits[: 6 if clicks is None else 16, :6] = 8
        return State(logits.half(), 0.9 if k < 5 else 0.1)

    monkeypatch.setattr("medsa.segmenter.volumes.GOES_ON", 0.4)
    monkeypatch.setattr("medsa.segmenter.volumes.Following._asked", lambda _self, k: square(k))
    monkeypatch.setattr(
        "medsa.segmenter.volumes.Following._shown", lambda _self, k, _, *more: square(k, *more)
    )
    session, inside = Session(), (28, 24)  # in the square, the way round a volume is looked at
    before = ask(segmenter, volume, [[*inside, 3]], session=session)
    assert before[:, :, 4].any()
    assert not before[:, :, 5:].any()
    after = ask(segmenter, volume, [[*inside, 3], [*inside, 5]], session=session)
    assert (after[:, :, 5] == before[:, :, 4]).all()


@pytest.mark.parametrize("segmenter", ["learnt"], indirect=True)
def test_what_the_model_denies_after_a_click_beside_is_gone(segmenter, volume, monkeypatch) -> None:
    def shown(_self, k, state, clicks=None):
        asked = clicks is not None and clicks.background
        return State(torch.full_like(state.logits, -8) if asked else state.logits, 0.9)

    monkeypatch.setattr("medsa.segmenter.volumes.Following._shown", shown)
    session = Session()
    row, column = np.argwhere(ask(segmenter, volume, [FIRST], session=session)[:, :, 5])[0]
    after = ask(segmenter, volume, [FIRST], [[int(row), int(column), 5]], session)
    assert not after[:, :, 5].any()  # the click inside that the model was shown was nobody's


@pytest.mark.parametrize("segmenter", ["learnt"], indirect=True)
@pytest.mark.parametrize(("side", "slices"), [(4, [5, 6]), (8, [5])])
def test_beyond_a_click_at_its_end_an_object_does_not_swell(
    segmenter, volume, monkeypatch, side, slices
) -> None:
    clicked = False

    def shown(_self, k, state, clicks=None):
        nonlocal clicked
        clicked |= clicks is not None and bool(clicks.foreground)
        logits = torch.full_like(state.logits, -8)
        logits[: 4 if k < 6 else side, : 4 if k < 6 else side] = 8
        return State(logits, 0.9 if k < 5 or clicked else 0.1)

    monkeypatch.setattr("medsa.segmenter.volumes.GOES_ON", 0.4)
    monkeypatch.setattr("medsa.segmenter.volumes.Following._shown", shown)
    session = Session()
    corner = [1, 1]
    assert not ask(segmenter, volume, [[*corner, 3]], session=session)[:, :, 5:].any()
    after = ask(segmenter, volume, [[*corner, 3], [*corner, 5]], session=session)
    assert [k for k in (5, 6) if after[:, :, k].any()] == slices


@pytest.mark.parametrize("segmenter", ["learnt"], indirect=True)
def test_a_click_that_turns_its_place_on_the_slice_beside_is_told_there(
    segmenter, volume, monkeypatch
) -> None:
    asked = {}

    def shown(_self, k, state, clicks=None):
        asked[k] = clicks
        return state

    monkeypatch.setattr("medsa.segmenter.volumes.Following._shown", shown)
    session = Session()
    before = ask(segmenter, volume, [FIRST], session=session)
    rows, columns = np.nonzero(before[:, :, 4] & before[:, :, 5] & before[:, :, 6])
    place = [int(rows[len(rows) // 2]), int(columns[len(rows) // 2])]
    asked.clear()
    after = ask(segmenter, volume, [FIRST], [[*place, 5]], session)
    assert not after[*place, 4]
    (told,) = asked[4].background
    assert np.abs(np.subtract(told, asked[5].background[0])).max() < 64 / 16


@pytest.mark.parametrize(
    ("areas", "most", "kept"),
    [
        ((20, 16, 5, 2, 6, 12), 0, 4),  # nearly gone, then another object
        ((20, 16, 9, 7, 14, 15), 0, 6),  # a narrow part of the same one
        ((3, 16, 20, 5, 4, 3), 0, 6),  # an end
        ((20, 16, 0, 12), 0, 3),
        ((4, 4, 3), np.inf, 3),  # at its end already
        ((4, 6, 8), np.inf, 1),
    ],
)
@pytest.mark.parametrize("way", [1, -1])
def test_where_nearly_nothing_is_left_an_object_has_ended(areas, most, kept, way) -> None:
    def square(side):
        logits = torch.full((32, 32), -8.0)
        logits[:side, :side] = 8
        return State(logits.half(), 0.9)

    states = {50 - way: square(9)} | {50 + n * way: square(side) for n, side in enumerate(areas)}
    found = tapering(states, 50, way, most)
    assert set(found) == {50 - way} | {50 + n * way for n in range(kept)}


@pytest.mark.parametrize("segmenter", ["learnt"], indirect=True)
def test_beside_a_correction_a_model_that_means_something_else_is_not_believed(
    segmenter, volume, monkeypatch
) -> None:
    def corrected(around):
        def shown(_self, k, state, clicks=None):
            return State(-state.logits, 0.9) if asked and k != 5 else state

        asked, session = False, Session()
        monkeypatch.setattr("medsa.segmenter.volumes.AROUND", around)
        monkeypatch.setattr("medsa.segmenter.volumes.Following._shown", shown)
        before = ask(segmenter, volume, [FIRST], session=session)
        row, column = np.argwhere(before[:, :, 5])[0]
        asked = True
        return ask(segmenter, volume, [FIRST], [[int(row), int(column), 5]], session)

    assert (corrected(4) == corrected(0)).all()


@pytest.mark.parametrize(("side", "goes_on"), [(4, True), (8, True), (9, True), (20, False), (32, False)])
def test_a_mask_that_leaps_is_an_end(monkeypatch, side, goes_on) -> None:
    def square(of):
        logits = torch.full((32, 32), -8.0)
        logits[:of, :of] = 8
        return State(logits.half(), 0.9)

    monkeypatch.setattr("medsa.segmenter.volumes.Following._shown", lambda *_: square(side))
    followed = Following(SimpleNamespace(bounds=None))._led(5, square(4))
    assert (followed is not None) == goes_on


def test_the_order_of_slices_does_not_matter(segmenter, volume) -> None:
    turned = volume.affine.copy()
    turned[:3, 2] *= -1
    turned[:3, 3] += volume.affine[:3, 2] * (SHAPE[2] - 1)
    reversed_volume = Volume(np.asfortranarray(volume.voxels[:, :, ::-1]), turned, "MR")
    one, other = Session(), Session()
    for foreground, background in (([FIRST], []), ([FIRST, [12, 9, 5]], []), ([FIRST], [[9, 9, 2]])):
        here = ask(segmenter, volume, foreground, background, one)
        there = ask(
            segmenter,
            reversed_volume,
            [[i, j, 6 - k] for i, j, k in foreground],
            [[i, j, 6 - k] for i, j, k in background],
            other,
        )
        assert (here == there[:, :, ::-1]).mean() > 0.999


def test_nothing_lies_outside_a_box_in_space(segmenter, volume) -> None:
    box = Prompt(box=[[10, 9, 2], [22, 19, 5]])
    mask = segmenter.segment_volume(volume, box, window="0,255").mask
    assert mask.any()
    mask[10:23, 9:20, 2:6] = 0
    assert not mask.any()


def test_another_image_under_the_same_session_gets_an_answer_of_its_own(segmenter, volume) -> None:
    session, turned = Session(), Volume(np.asfortranarray(volume.voxels[::-1]), volume.affine, "MR")
    ask(segmenter, volume, [FIRST], session=session)
    again = segmenter.segment_volume(turned, Prompt(foreground=[FIRST]), window="0,255", session=session)
    assert again.timings["decode"] > 0  # nothing was remembered of it
    assert ((again.mask != 0) == ask(segmenter, turned, [FIRST], session=Session())).all()


@pytest.mark.parametrize("flat", [0, 1], ids=["sagittal", "coronal"])
def test_a_box_across_the_slices_clicks_in_its_middle_and_bounds_the_object_in_its_plane(
    segmenter, volume, flat
) -> None:
    corners = np.array([[8, 7, 1], [24, 21, 5]])
    corners[:, flat] = 15
    mask = segmenter.segment_volume(volume, Prompt(box=corners), window="0,255").mask != 0
    assert mask[tuple(np.rint(corners.mean(axis=0)).astype(int))]
    inside = np.zeros(SHAPE, bool)
    wide = [slice(low, high + 1) for low, high in corners.T]
    wide[flat] = slice(None)
    inside[tuple(wide)] = True
    assert not (mask & ~inside).any()
    with pytest.raises(BadInputError, match="crosses the slices"):
        segmenter.segment_slice(volume, Prompt(box=corners), 3)
