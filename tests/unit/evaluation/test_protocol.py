"""The protocol measures what users get, on the same objects for every model, and the same every time."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.adapters.conftest import small_sam

from medsa.adapters.inject import adapt
from medsa.data.geometry import LPS_TO_RAS
from medsa.data.volume import Volume
from medsa.evaluation import protocol
from medsa.evaluation.forgetting import FORGETTING
from medsa.evaluation.overlap import dice
from medsa.evaluation.protocol import WHOLE, Row, difference, mean, measure
from medsa.prompts.prompt import Prompt
from medsa.segmenter import Segmenter


@dataclass(frozen=True)
class Drawn:
    """A bright and a less bright disc on a dark ground."""

    id: str
    patient: str
    seed: int = 0

    def read(self):
        rng = np.random.default_rng(self.seed)
        i, j = np.mgrid[:48, :40]
        mask = np.zeros((48, 40, 3), np.uint8, order="F")
        mask[(i - 14) ** 2 + (j - 14) ** 2 < 60] = 1
        mask[(i - 34) ** 2 + (j - 28) ** 2 < 40] = 2
        voxels = np.asfortranarray(mask * 60 + rng.normal(0, 4, mask.shape), np.float32)
        return Volume(voxels, LPS_TO_RAS), mask, {1: "liver", 2: "spleen"}


CASES = [Drawn("a", "DOE^JANE"), Drawn("b", "DOE^JANE", 1), Drawn("c", "ROE^JIM", 2)]


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(small_sam("vit"))


@pytest.fixture(scope="module")
def tables(segmenter):
    other = Segmenter(small_sam("vit", seed=1))
    done = []
    rows = measure({"one": segmenter, "two": other}, CASES, progress=done.append)
    assert done == [1, 2, 3]
    return rows


def test_every_model_is_measured_on_the_same_objects(tables):
    assert [row.key for row in tables["one"]] == [row.key for row in tables["two"]]
    assert {row.label for row in tables["one"]} == {"liver", "spleen"}
    assert len(tables["one"]) == 3 * 2 * 2


def test_who_has_learnt_the_labels_is_told_them_in_clicks_boxes_and_volumes():
    named, others = adapt(small_sam("vit"), "decoder_prompt"), adapt(small_sam("vit"), "decoder_prompt")
    for model, name in ((named, "liver"), (others, "kidney")):
        model.trained_prompts = ("point", "box", "mask")
        model.learn_names([name]).data.fill_(0.3)
    rows = measure({"named": Segmenter(named), "others": Segmenter(others)}, CASES[:1], volumes=1)
    told = set()
    for one, other in zip(rows["named"], rows["others"], strict=True):
        unlike = {name for name, value in one.values.items() if value != other.values[name]}
        assert not unlike or one.label == "liver"
        told |= unlike
    assert told >= {"1 pt", "box", "volume"}


def test_a_row_holds_clicks_their_mean_a_box_and_the_control(tables):
    for row in tables["one"]:
        assert set(row.values) == {"1 pt", "3 pts", "10 pts", "auc", "box", "background"}
        assert all(0 <= value <= 1 for value in row.values.values())


def test_the_first_volumes_are_followed_through_from_one_click(segmenter, tables):
    rows = measure({"one": segmenter}, CASES, volumes=2)["one"]
    whole = [row for row in rows if row.k == WHOLE]
    assert [(row.case, row.label) for row in whole] == [(c, n) for c in "ab" for n in ("liver", "spleen")]
    assert [set(row.values) for row in whole] == [{"volume"}] * 4
    assert tuple(row for row in rows if row.k != WHOLE) == tables["one"]
    volume, mask, _ = CASES[0].read()
    prompt = Prompt(foreground=[[14, 14, 1]])
    assert whole[0].values["volume"] == dice(segmenter.segment_volume(volume, prompt).mask, mask == 1)


def test_what_no_slice_can_be_asked_for_is_not_followed_either(segmenter):
    class Thread(Drawn):
        """A line of voxels through the slices."""

        def read(self):
            volume, mask, names = super().read()
            thread = np.zeros_like(mask)
            thread[14, 14] = 1
            return volume, thread, names

    assert measure({"one": segmenter}, [Thread("a", "ROE^JIM")], volumes=1) == {"one": ()}


def test_the_same_model_gives_the_same_rows_again(segmenter, tables):
    again = measure({"one": segmenter}, CASES[:1])["one"]
    assert [row.values for row in again] == [row.values for row in tables["one"][: len(again)]]


def test_clicks_correct_what_the_model_gets_wrong(tables):
    """The runtime obeys each click, so that even random weights get better."""
    assert mean(tables["one"], "10 pts") > mean(tables["one"], "1 pt")


@pytest.mark.parametrize("part", ["decoder", "refiner"])
def test_a_deaf_model_is_found_out_by_its_own_answer(segmenter, part):
    """One that answers the liver wherever one clicks; the runtime's corrections do not hide it."""
    volume, mask, _ = CASES[0].read()
    truth = mask == 1

    class Deaf:
        config, image_size, dense_pe = (
            getattr(segmenter.sam, n) for n in ("config", "image_size", "dense_pe")
        )
        multimask = False

        def decode(self, embedding, **_prompts):
            logits = torch.full((1, 1, self.image_size, self.image_size), -1.0)
            return self.liver() if part == "decoder" else logits, torch.ones(1, 1)

        def refine(self, logits, _pictures):
            return self.liver() if part == "refiner" else logits

        def liver(self):
            frame = protocol.Frame.of(volume, self.config, self.image_size)
            square = frame.mask_to_model(truth[:, :, 1], self.image_size)
            return torch.from_numpy(square)[None, None].float() - 0.5

    point = protocol.background_point(truth[:, :, 1], np.random.default_rng(0))
    answer = protocol.own_answer(Deaf(), protocol._encode(segmenter, volume, 1, "auto"), volume, point)
    assert protocol.dice(answer, truth[:, :, 1]) > 0.85


def test_the_control_sees_a_volume_the_same_way_round_as_the_runtime(segmenter):
    volume, _, _ = CASES[0].read()
    turned = Volume(np.asfortranarray(volume.voxels[::-1, ::-1, ::-1]), np.diag([1.0, 1.0, -1.0, 1.0]))
    one, other = (
        protocol.own_answer(segmenter.sam, protocol._encode(segmenter, v, k, "auto"), v, at)
        for v, k, at in ((volume, 0, (5, 30)), (turned, 2, (42, 9)))
    )
    assert one.any()
    assert (other == one[::-1, ::-1]).all()


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_background_click_is_never_on_the_object(data):
    shape = data.draw(st.tuples(st.integers(4, 30), st.integers(4, 30)))
    low = data.draw(st.tuples(*(st.integers(0, n - 1) for n in shape)))
    high = data.draw(st.tuples(*(st.integers(a, n - 1) for a, n in zip(low, shape, strict=True))))
    truth = np.zeros(shape, bool)
    truth[low[0] : high[0] + 1, low[1] : high[1] + 1] = True
    point = protocol.background_point(truth, np.random.default_rng(data.draw(st.integers(0, 99))))
    assert point is None or not truth[point]


@settings(max_examples=50, deadline=None)
@given(areas=st.lists(st.integers(0, 40), min_size=1, max_size=30), most=st.integers(1, 5))
def test_slices_hold_a_good_part_of_the_object(areas, most):
    truth = np.zeros((8, 8, len(areas)), bool)
    for k, area in enumerate(areas):
        truth[:, :, k].flat[:area] = True
    chosen = protocol.chosen_slices(truth, most)
    assert len(chosen) <= most
    assert all(areas[k] >= max(areas) / 2 for k in chosen)
    assert chosen or max(areas) <= 8


def rows(values):
    return [
        Row(str(p), "c", "liver", k, {"auc": v})
        for p, found in enumerate(values)
        for k, v in enumerate(found)
    ]


VALUES = st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=4), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(VALUES, st.floats(-1, 1))
def test_a_difference_is_paired_signed_and_within_its_interval(values, gain):
    one, other = rows([[v + gain for v in found] for found in values]), rows(values)
    found = difference(one, other, "auc", draws=200)
    assert found.mean == pytest.approx(gain)
    assert found.low == pytest.approx(gain)
    assert found.high == pytest.approx(gain)
    back = difference(other, one, "auc", draws=200)
    assert back.mean == pytest.approx(-gain)


def test_a_patient_with_many_slices_counts_as_one():
    assert mean(rows([[1.0] * 9, [0.0]]), "auc") == 0.5


def test_patients_who_disagree_widen_the_interval():
    zero = rows([[0.0]] * 6)
    sure = difference(rows([[0.1]] * 6), zero, "auc")
    unsure = difference(rows([[0.5], [-0.3]] * 3), zero, "auc")
    assert sure.low == pytest.approx(0.1)
    assert unsure.low < 0 < unsure.high


def test_models_measured_on_different_objects_are_not_compared():
    with pytest.raises(ValueError, match="same objects"):
        difference(rows([[0.1]]), rows([[0.1, 0.2]]), "auc")


def test_the_forgetting_set_is_the_same_every_time():
    for case in FORGETTING:
        (volume, mask, names), (again, _, _) = case.read(), case.read()
        assert (volume.voxels == again.voxels).all()
        assert mask.shape == volume.shape
        assert set(np.unique(mask)) == {0, *names}
