"""Asked together, on many slices and objects, a model gives the masks that a user gets one by one."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.unit.adapters.conftest import small_sam
from tests.unit.adapters.test_placement import randomise

from medsa.adapters.inject import adapt
from medsa.data.volume import Volume
from medsa.evaluation.answering import hold, one_by_one, together
from medsa.evaluation.asking import Answers, Protocol, Reply, Target, dialogues
from medsa.segmenter import Segmenter

PROTOCOL = Protocol(clicks=(1, 2, 5), boxes=(1.0, 0.75), noc=True)


def targets() -> list[Target]:
    """Discs on slices of two volumes of other sizes; the second one is stored the other way round."""
    found = []
    for seed, (width, height, turned) in enumerate([(48, 40, False), (30, 500, True)]):
        i, j = np.mgrid[:width, :height]
        truths = [(i - 14) ** 2 + (j - 10 - 9 * k) ** 2 < 60 + 9 * k for k in range(3)]
        noise = np.random.default_rng(seed).normal(0, 4, (width, height, 3))
        voxels = np.asfortranarray(np.stack(truths, axis=2) * 60 + noise, np.float32)
        affine = np.diag([1.0, -1.0, -2.0, 1.0] if turned else [-1.0, -1.0, 2.0, 1.0])
        volume = Volume(voxels, affine, "MR")
        found += [Target(volume, truth, k, label="abc"[k]) for k, truth in enumerate(truths)]
    return found


def models() -> dict[str, Callable[[], object]]:
    def taught(kind: str, *prompts: str) -> object:
        model = adapt(small_sam(kind), "decoder_only").eval()
        model.trained_prompts = prompts
        return model

    return {
        "boxes alone": lambda: taught("tiny_vit", "box"),
        "points and boxes": lambda: small_sam("vit"),
        "masks, too": lambda: taught("tiny_vit", "point", "box", "mask"),
        "names": named,
    }


def named() -> object:
    """A model that says something else of each of two labels."""
    model = adapt(small_sam("tiny_vit"), "decoder_refined").eval()
    model.learn_names("ab").data.normal_()
    model.trained_prompts = ("point", "box", "mask")
    return model


def asked(segmenter: Segmenter, answer) -> list[Answers]:
    found = [Answers() for _ in targets()]
    held = []
    for number, (target, answers) in enumerate(zip(targets(), found, strict=True)):
        held += dialogues(target, PROTOCOL, [number], answers)
    hold(held, lambda asks: answer(segmenter, asks))
    return found


@pytest.mark.parametrize("name", models())
def test_together_as_one_by_one(name: str) -> None:
    torch.manual_seed(0)
    segmenter = Segmenter(models()[name]())
    alone, all_ = asked(segmenter, one_by_one), asked(segmenter, together)
    for one, other in zip(alone, all_, strict=True):
        assert set(one.prompts) == set(PROTOCOL.names)
        for prompt, values in one.prompts.items():
            assert other.prompts[prompt] == pytest.approx(values, abs=0.01)  # a voxel on the border
        assert other.numbers == pytest.approx(one.numbers, abs=0.01)
    same = [one.prompts == other.prompts for one, other in zip(alone, all_, strict=True)]
    assert np.mean(same) > 0.8


def test_clicks_are_deep_or_anywhere_in_what_is_wrong() -> None:
    """An answer that is always empty leaves the object wrong: clicks go to its middle, or all over it."""
    target = targets()[0]
    for anywhere in (False, True):
        clicked = []

        def nothing(asks, clicked=clicked):
            clicked += [tuple(ask.prompt.foreground[-1, :2]) for ask in asks]
            return [Reply(np.zeros_like(target.truth), 0.0) for _ in asks]

        protocol = Protocol(boxes=(), noc=False, deepest=True, anywhere=anywhere)
        hold(dialogues(target, protocol, [5], Answers()), nothing)
        assert len(clicked) == 10
        assert len(set(clicked)) == 1 if not anywhere else len(set(clicked)) > 5
        assert all(target.truth[int(i), int(j)] for i, j in clicked)


@pytest.mark.parametrize(
    ("prompts", "questions", "numbers"),
    [("1", 1, set()), ("1,3", 3, set()), ("1,10", 10, {"auc"}), ("noc", 10, {"auc", "noc85", "noc90"})],
)
def test_no_click_is_made_that_nobody_asked_for(prompts: str, questions: int, numbers: set[str]) -> None:
    target, asked, found = targets()[0], [], Answers()

    def nothing(asks):
        asked.extend(asks)
        return [Reply(np.zeros_like(target.truth), 0.0) for _ in asks]

    hold(dialogues(target, Protocol.of(prompts), [5], found), nothing)
    assert len(asked) == questions
    assert set(found.numbers) == numbers


def test_afresh_the_model_is_not_shown_its_mask(monkeypatch) -> None:
    segmenter = Segmenter(small_sam("vit"))
    shown = []
    decode = segmenter.sam.decode

    def seen(embedding, **asked):
        shown.append(asked["masks"] is not None)
        return decode(embedding, **asked)

    monkeypatch.setattr(segmenter.sam, "decode", seen)
    for afresh in (False, True):
        shown.clear()
        protocol = Protocol(clicks=(1, 3), boxes=(), noc=False, raw=True, afresh=afresh)
        hold(dialogues(targets()[0], protocol, [5], Answers()), lambda asks: together(segmenter, asks))
        assert any(shown) != afresh
        assert len(shown) > 2


def test_each_slice_is_encoded_once_and_asked_about_in_few_calls(monkeypatch) -> None:
    segmenter = Segmenter(small_sam("vit"))
    sizes = {"encode": [], "decode": []}
    for name, batches in sizes.items():
        call = getattr(segmenter.sam, name)

        def counted(first, *args, call=call, batches=batches, **words):
            batches.append(len(first))
            return call(first, *args, **words)

        monkeypatch.setattr(segmenter.sam, name, counted)
    asked(segmenter, together)
    zoomed = 6  # the small discs in the slices of 500 voxels are looked at closely for each of two boxes
    assert sum(sizes["encode"]) <= 6 + zoomed
    assert max(sizes["decode"]) <= 8
    assert len(sizes["decode"]) <= 2 + 10 + 1


def test_in_slabs_a_slice_is_seen_as_in_its_volume() -> None:
    torch.manual_seed(0)
    model = adapt(small_sam("vit"), "med_sa").eval()
    randomise(model)
    segmenter = Segmenter(model)
    target, found = targets()[1], {}
    for slabs in (False, True):
        held = dialogues(
            replace(target, slabs=slabs), Protocol(clicks=(1,), boxes=(), deepest=True), [1], Answers()
        )
        ask = next(held[0])
        (found[slabs],) = (reply.mask for reply in together(segmenter, [ask]))
    whole = segmenter.segment_volume(target.volume, ask.prompt).mask[:, :, target.k] != 0
    alone = segmenter.segment_slice(target.volume, ask.prompt, target.k).mask[:, :, target.k] != 0
    assert (found[True] == whole).all()
    assert (found[False] == alone).all()
    assert (whole != alone).any()
