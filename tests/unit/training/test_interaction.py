"""Training asks what serving asks: the same tokens, the same masks as prompts, the same mask chosen."""

import numpy as np
import pytest
import torch
from tests.unit.adapters.conftest import one_thread, small_sam

from medsa.adapters.inject import adapt
from medsa.adapters.method import Method, Refinement
from medsa.data.geometry import LPS_TO_RAS
from medsa.data.volume import Volume
from medsa.evaluation.overlap import dice
from medsa.prompts.annotator import first_click, next_click
from medsa.prompts.mixture import Interaction, PromptMixture
from medsa.prompts.prompt import Prompt
from medsa.segmenter import Segmenter, Session
from medsa.segmenter.slices import keep_parts
from medsa.training.engine import grid_of
from medsa.training.interaction import Decoder, Protocolled, Training, follow, interact
from medsa.training.items import items_of

__all__ = ["one_thread"]

METHOD = Method(name="m", title="", paper="", trains=("mask_decoder",))


def ball(shape: tuple[int, int, int] = (48, 48, 1)) -> tuple[Volume, np.ndarray]:
    i, j, _ = np.mgrid[: shape[0], : shape[1], : shape[2]]
    mask = ((i - 20) ** 2 + (j - 17) ** 2 < 90).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 8, shape)
    return Volume(np.asfortranarray(30 + 120 * mask + noise, np.float32), LPS_TO_RAS, "MR"), mask


def model(refined=False):
    method = METHOD.model_copy(update={"refiner": Refinement(width=8)}) if refined else METHOD
    found = adapt(small_sam("tiny_vit"), method)
    if refined:
        torch.nn.init.normal_(found.adapters.refiner.out.weight, std=1.0)
    found.trained_prompts, found.multimask = ("point", "box", "mask"), True
    return found


@pytest.mark.parametrize("refined", [False, True])
def test_a_rounds_mask_is_the_one_the_runtime_gives_for_the_same_clicks(refined: bool) -> None:
    taught, (volume, mask) = model(refined), ball()
    (item,) = items_of(volume, mask, {1: "ball"}, grid_of(taught), "s")
    embedding = taught.encode(item.picture.image(taught.base.config))
    side = item.side
    assert side == 48  # logits as fine as the voxels: clicks can be compared one to one
    with torch.no_grad():
        rounds = [
            r.shown[0]
            for r in interact(Decoder(taught), embedding, [item], Interaction("click", 3), Protocolled())
        ]

    segmenter, session = Segmenter(taught), Session()
    truth, points = mask[:, :, 0].astype(bool), {True: [], False: []}
    click = first_click(truth.T)
    for shown in rounds:
        points[click.positive].append((click.index[1], click.index[0], 0))
        prompt = Prompt(foreground=np.array(points[True]), background=np.array(points[False]))
        served = segmenter.segment_slice(volume, prompt, 0, session=session).mask[:, :, 0] != 0
        assert dice(served, shown.T) > 0.99
        click = next_click(truth.T, shown)
        if click is None:  # training asks no further either
            break
    assert len(rounds) == sum(map(len, points.values())) > 1


def test_a_batch_is_its_items_one_by_one() -> None:
    taught, decoder = model(), Decoder(model())
    items = [
        item
        for shape in ((48, 48, 1), (48, 30, 1))
        for item in items_of(*ball(shape), {1: "ball"}, grid_of(taught), "s")
    ]
    embeddings = torch.cat([taught.encode(item.picture.image(taught.base.config)) for item in items])
    for start in ("click", "box", "click and box"):
        plan = Interaction(start, 2)
        with torch.no_grad():
            together = list(interact(decoder, embeddings, items, plan, Protocolled()))
            for n, item in enumerate(items):
                alone = list(interact(decoder, embeddings[n : n + 1], [item], plan, Protocolled()))
                for one, both in zip(alone, together, strict=True):
                    assert torch.allclose(one.scores[0], both.scores[n], atol=1e-4)
                    assert (one.shown[0] != both.shown[n]).mean() < 0.01


def test_every_round_of_a_batch_has_gradient_and_keeps_no_graph_of_the_one_before() -> None:
    taught = model()
    items = items_of(*ball(), {1: "ball"}, grid_of(taught), "s")
    embedding = taught.encode(items[0].picture.image(taught.base.config))
    annotator = Training(PromptMixture(), np.random.default_rng(0))
    masks = []
    for answer in interact(Decoder(taught), embedding, items, Interaction("click", 2), annotator):
        answer.logits.mean().backward()
        masks.append(answer.logits.shape[1])
    assert masks == [3, 1, 1]


def test_an_absent_object_is_asked_for_with_its_neighbours_box() -> None:
    taught = model()
    volume, mask = ball((48, 48, 3))
    mask[:, :, 2] = 0
    items = items_of(volume, mask, {1: "ball"}, grid_of(taught), "s", empty=True)
    absent = next(item for item in items if item.around is not None)
    embedding = taught.encode(absent.picture.image(taught.base.config))
    with torch.no_grad():
        rounds = list(interact(Decoder(taught), embedding, [absent], Interaction("box", 1), Protocolled()))
    assert rounds[0].logits.shape[1] == 1


@pytest.mark.parametrize("refined", [False, True])
def test_an_object_is_followed_in_training_as_the_runtime_follows_it(monkeypatch, refined: bool) -> None:
    monkeypatch.setattr("medsa.segmenter.volumes.GOES_ON", -np.inf)
    monkeypatch.setattr("medsa.segmenter.volumes.LOOKED_AGAIN", 0.0)
    taught, (volume, mask) = model(refined), ball((48, 40, 5))
    taught.trained_prompts = (*taught.trained_prompts, "neighbour")
    items = items_of(volume, mask, {1: "ball"}, grid_of(taught), "s", run=3)
    first = items[0]
    assert len(first.trail) == 4

    def embedded(of):
        return torch.cat([taught.encode(item.picture.image(taught.base.config)) for item in of])

    with torch.no_grad():
        rounds = list(follow(Decoder(taught), embedded, [first], 4, Protocolled()))
    click = first_click(mask[:, :, 0].astype(bool).T).index
    prompt = Prompt(foreground=[[click[1], click[0], 0]])
    served = Segmenter(taught).segment_volume(volume, prompt).mask != 0
    assert 1 < len(rounds) <= 4
    for k, (beside, answer) in enumerate(rounds, start=1):
        assert beside[0] is first.trail[k - 1]
        shown = answer.shown[0][:40]
        kept = keep_parts(torch.from_numpy(np.where(shown, 1.0, -1.0)), served[:, :, k - 1].T) > 0
        assert dice(served[:, :, k], kept.numpy().T) > 0.97
        if not (shown == kept.numpy()).all():
            break  # training goes on with all parts, and so elsewhere


def test_what_is_followed_ends_with_its_trail_and_when_nothing_is_left_of_it() -> None:
    taught, (volume, mask) = model(), ball((48, 40, 5))
    items = items_of(volume, mask, {1: "ball"}, grid_of(taught), "s", run=3)

    class Answers:
        """A decoder that finds the object on all slices, or on none."""

        model = taught

        def __init__(self, value: float) -> None:
            self.value = value

        def about(self, _items):
            return self

        def __call__(self, embedding, points, labels, boxes, masks, multimask):
            assert points is boxes is None
            return torch.full((len(embedding), 1, 48, 48), self.value), torch.ones(len(embedding), 1)

    def embedded(of):
        return torch.zeros(len(of), 1, 1, 1)

    seen = [len(beside) for beside, _ in follow(Answers(1.0), embedded, items, 5, None)]
    assert seen == [sum(len(item.trail) > place for item in items) for place in range(4)]
    assert [len(beside) for beside, _ in follow(Answers(-1.0), embedded, items, 5, None)] == [5]
