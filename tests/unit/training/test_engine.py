"""A run learns, goes on after a kill as if nothing had been, and leaves nothing it need not."""

import csv
import os
import signal
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.adapters.conftest import one_thread, small_sam

from medsa.adapters.inject import adapt
from medsa.adapters.method import EncoderAdapters, Method
from medsa.data.volume import Volume
from medsa.errors import WeightsError
from medsa.prompts.mixture import PromptMixture
from medsa.sam import Sam
from medsa.training.engine import Run, grid_of
from medsa.training.items import Item, items_of
from medsa.training.length import Length
from medsa.training.loop import CHECKPOINT
from medsa.training.settings import Settings
from medsa.training.validation import FOLLOWED

__all__ = ["one_thread"]

DECODER = Method(
    name="decoder", title="", paper="", trains=("mask_decoder", "prompt_encoder.point_embeddings")
)
ENCODER = Method(
    name="encoder", title="", paper="", encoder={"attention": True, "depth": True}, decoder={}, depth=3
)
PLAIN = Method(name="plain", title="", paper="", encoder={"attention": True})


def discs(sam: Sam, count: int, seed: int = 0, depth: int = 1) -> list[Item]:
    """Items of small volumes, each with a bright ball of its own place and size."""
    rng, found = np.random.default_rng(seed), []
    for n in range(count):
        centre, radius = rng.uniform(14, 26, 2), rng.uniform(5, 10)
        i, j, _ = np.mgrid[:40, :36, :3]
        mask = (i - centre[0]) ** 2 + (j - centre[1]) ** 2 < radius**2
        voxels = np.asfortranarray(40 + 150 * mask + rng.normal(0, 10, mask.shape), dtype=np.float32)
        volume = Volume(voxels, np.eye(4), "MR")
        found += items_of(volume, mask.astype(np.uint8), {1: "ball"}, grid_of(sam, depth), f"s{n}", most=1)
    return found


def settings(**changed: object) -> Settings:
    plain = {
        "name": "test", "title": "", "batch": 2, "rate": 3e-3, "epoch_items": 8, "validation_items": 4,
        "ema": 0.5, "checkpoint_steps": 3, "prompts": PromptMixture(rounds=1),
    }  # fmt: skip
    return Settings(**(plain | changed))


def run(folder: Path, epochs: int = 3, method: Method = DECODER, **options: object) -> Run:
    sam = small_sam("tiny_vit")
    torch.manual_seed(1)
    model = adapt(sam, method)
    model.multimask = True
    depth = method.depth
    return Run(
        model, discs(sam, 8, depth=depth), discs(sam, 4, 1, depth), options.pop("settings", settings()),
        folder, Length(epochs=epochs), **options,
    )  # fmt: skip


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in run.parameters.items()}


def figures(rows: tuple) -> list[dict]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_run_learns_what_it_is_shown(tmp_path: Path) -> None:
    outcome = run(tmp_path, epochs=30, settings=settings(patience=100)).go()
    assert outcome.finished
    losses = [row["loss"] for row in outcome.rows if "loss" in row]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert max(row["box"] for row in outcome.rows) > outcome.rows[0]["box"] + 0.2


@pytest.mark.parametrize(
    ("method", "asked"), [(DECODER, 4), (ENCODER, 1), (DECODER, 2)], ids=["decoder", "encoder", "epoch's end"]
)
def test_a_stopped_run_goes_on_to_the_same_losses_and_weights(
    tmp_path: Path, method: Method, asked: int
) -> None:
    flips = settings(augmentation={"flip_share": 0.5, "intensity_share": 0.5}, coarse=0.5, accumulate=2)
    whole = run(tmp_path / "whole", method=method, settings=flips)
    expected = whole.go()

    steps = iter(range(100))
    first = run(tmp_path / "parts", method=method, settings=flips, stop=lambda: next(steps) >= asked)
    assert not first.go().finished
    second = run(tmp_path / "parts", method=method, settings=flips)
    again = second.go(resume=True)

    assert figures(again.rows) == figures(expected.rows)
    found = weights(second)
    assert all(torch.equal(found[name], value) for name, value in weights(whole).items())


@pytest.mark.parametrize(("learns", "follows"), [(ENCODER, True), (PLAIN, False)])
def test_no_step_of_a_method_of_the_encoder_alone_is_lost_on_following(
    tmp_path: Path, learns: Method, follows: bool
) -> None:
    """An object is followed on embeddings, which teach the decoder."""
    made = run(tmp_path, method=learns, settings=settings(follow=1.0))
    volume = Volume(np.asfortranarray(np.eye(40, dtype=np.float32)[:, :, None].repeat(6, 2)), np.eye(4), "MR")
    mask = np.zeros(volume.shape, np.uint8)
    mask[8:30, 8:30] = 1
    items = items_of(volume, mask, {1: "ball"}, grid_of(made.model, learns.depth), "s", run=6)
    made.groups, made.taken, done = [[item] for item in items], 1, []
    made._follow = lambda *_: done.append("followed") or 0.0
    made.learn(0, np.random.default_rng(0))
    assert bool(done) is follows
    moved = [p.grad is not None and bool(p.grad.any()) for p in made.parameters.values()]
    assert any(moved) is not follows


def test_an_object_that_augmentation_would_lose_is_shown_as_it_is(tmp_path: Path) -> None:
    made = run(tmp_path, method=PLAIN, settings=settings(augmentation={"turn_share": 1.0, "rotation": 45}))
    mask = np.zeros((made.model.embedding_size * 4,) * 2, bool)
    mask[:3, :3] = True
    corner = replace(made.groups[0][0], packed=np.packbits(mask))
    shown = [made._augmented([corner], np.random.default_rng(n))[0] for n in range(30)]
    assert all(item.prompted.any() for item in shown)
    assert {item is corner for item in shown} == {True, False}


def test_an_epoch_of_slabs_asks_for_each_object_once(tmp_path: Path) -> None:
    """Slabs about each slice hold it three times, but that is no reason to learn three times as long."""
    model = run(tmp_path, method=ENCODER).model
    volume = Volume(np.zeros((40, 40, 9), np.float32, order="F"), np.eye(4), "MR")
    mask = np.zeros(volume.shape, np.uint8)
    mask[8:30, 8:30] = 1
    items = items_of(volume, mask, {1: "ball"}, grid_of(model, 3), "s")
    slabs = Run(model, items, [], settings(epoch_items=1000), tmp_path / "slabs", Length(epochs=1))
    assert len(items) == 7 * 3
    assert slabs.epoch_length == 9 // 2


def _run_and_die(folder: Path) -> None:
    steps = iter(range(100))
    run(folder, report=lambda _: next(steps) == 7 and os.kill(os.getpid(), signal.SIGKILL)).go()


def test_a_killed_run_goes_on_to_the_same_losses(tmp_path: Path) -> None:
    process = get_context("fork").Process(target=_run_and_die, args=(tmp_path / "killed",))
    process.start()
    process.join(100)
    assert process.exitcode == -signal.SIGKILL
    resumed = run(tmp_path / "killed")
    again = resumed.go(resume=True)
    whole = run(tmp_path / "whole")
    assert figures(again.rows) == figures(whole.go().rows)
    assert all(torch.equal(value, weights(resumed)[name]) for name, value in weights(whole).items())


@pytest.mark.parametrize(
    ("length", "patience"),
    [(Length(epochs=2), 12), (Length(steps=5), 12), (Length(epochs=20), 1)],
    ids=["epochs", "steps", "patience"],
)
def test_a_run_that_ended_and_was_killed_before_its_weights_were_kept_learns_no_more(
    tmp_path: Path, length: Length, patience: int
) -> None:
    how = settings(patience=patience, rate=1e-12 if patience == 1 else 3e-3)

    def begin() -> Run:
        begun = run(tmp_path, settings=how)
        begun.length = length
        return begun

    first = begin()
    ended = first.go()
    second = begin()
    again = second.go(resume=True)
    assert (again.steps, figures(again.rows)) == (ended.steps, figures(ended.rows))
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())


def test_the_same_seed_gives_the_same_run_and_another_one_another(tmp_path: Path) -> None:
    one, same, other = (run(tmp_path / name, seed=seed).go() for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert figures(one.rows) == figures(same.rows) != figures(other.rows)


def test_only_what_the_method_names_is_changed(tmp_path: Path) -> None:
    training = run(tmp_path)
    training.validation = []  # or its best weights may be those of the start
    frozen = {
        name: value.clone()
        for name, value in training.model.adapters.state_dict().items()
        if name not in training.parameters
    }
    base = {name: value.clone() for name, value in training.model.base.state_dict().items()}
    before = weights(training)
    training.go()
    assert any((before[name] != value).any() for name, value in weights(training).items())
    for kept, now in (
        (frozen, training.model.adapters.state_dict()),
        (base, training.model.base.state_dict()),
    ):
        assert all(torch.equal(value, now[name]) for name, value in kept.items())


def test_a_finished_run_leaves_its_history_and_no_embedding(tmp_path: Path) -> None:
    outcome = run(tmp_path).go()
    table = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert [float(row["step"]) for row in table] == [row["step"] for row in outcome.rows]
    assert {"1 pt", "3 pts", "box", "loss", "rate"} <= set(table[0])
    assert (tmp_path / "history.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "embeddings").exists()
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.rglob("*"))


def test_embeddings_on_disk_are_private_while_they_are_there(tmp_path: Path) -> None:
    training = run(tmp_path, stop=lambda: True)
    training.go()
    kept = list((tmp_path / "embeddings").iterdir())
    assert kept
    assert all(path.stat().st_mode & 0o077 == 0 for path in [*kept, tmp_path / "embeddings"])


def test_a_run_without_progress_ends_early(tmp_path: Path) -> None:
    outcome = run(tmp_path, epochs=50, settings=settings(rate=1e-12, patience=2)).go()
    assert outcome.finished
    assert outcome.rows[-1]["epoch"] == 2


def test_a_run_of_minutes_ends_by_the_clock(tmp_path: Path) -> None:
    training = run(tmp_path, settings=settings(patience=10**6))
    training.length = Length(minutes=1 / 60)
    outcome = training.go()
    assert outcome.finished
    assert outcome.seconds >= 1
    assert outcome.rows[-1]["step"] == outcome.steps


def test_tensorboard_and_mlflow_write_where_they_are_told(tmp_path: Path) -> None:
    run(tmp_path / "run", epochs=1, tensorboard=True, mlflow=tmp_path / "mlflow").go()
    assert list((tmp_path / "run" / "tensorboard").iterdir())
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    (found,) = mlflow.search_runs(experiment_names=["medsa"], output_format="list")
    assert found.info.status == "FINISHED"
    assert {"1_pt", "box", "loss"} <= set(found.data.metrics)
    assert found.data.params["batch"] == "2"


def test_a_damaged_or_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    run(tmp_path, epochs=1).go()
    with pytest.raises(WeightsError, match="another method"):
        run(tmp_path, method=ENCODER).go(resume=True)
    (tmp_path / CHECKPOINT).write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="cannot be read"):
        run(tmp_path).go(resume=True)


def test_a_picture_is_encoded_once_for_all_that_is_asked_on_it(tmp_path: Path) -> None:
    alone = ENCODER.model_copy(update={"depth": 1, "encoder": EncoderAdapters(attention=True)})
    learning = run(tmp_path, method=alone, settings=settings(batch=4, validation_items=1))
    learning.groups = [[item, replace(item, label="again")] for (item,) in learning.groups]
    learning.taken = 2
    seen, encode = [], learning.model.encode
    learning.model.encode = lambda images: seen.append(len(images)) or encode(images)
    items, embedding = learning._embedded(
        learning._batch(0, np.random.default_rng(0)), np.random.default_rng(0)
    )
    assert [item.label for item in items].count("again") == 2
    assert len(items) == len(embedding) == 4
    assert seen == [2]
    alone = learning._alone([items[0], replace(items[0], label="other"), items[0].coarser()])
    assert seen[1:] == [1]
    assert torch.equal(alone[0], alone[1])
    assert torch.equal(alone[0], alone[2])


def test_what_starts_from_nothing_learns_at_a_rate_of_its_own(tmp_path: Path) -> None:
    both = ENCODER.model_copy(
        update={"trains": ("mask_decoder",), "depth": 1, "encoder": EncoderAdapters(mlp=True)}
    )
    learning = run(tmp_path, method=both, settings=settings(rate=1e-4, adapter_rate=1e-2))
    rates = {id(p): group["peak"] for group in learning.optimizer.param_groups for p in group["params"]}
    for name, parameter in learning.parameters.items():
        assert rates[id(parameter)] == (1e-4 if name.startswith("own.") else 1e-2)


def trails(sam: Sam, count: int, seed: int = 0, depth: int = 1) -> list[Item]:
    """Balls through some slices and not through others, each slice with its neighbours."""
    rng, found = np.random.default_rng(seed), []
    for n in range(count):
        centre, first = rng.uniform(14, 26, 2), int(rng.integers(1, 3))
        i, j, k = np.mgrid[:40, :36, :7]
        mask = ((i - centre[0]) ** 2 + (j - centre[1]) ** 2 < 64) & (k >= first) & (k < first + 3)
        voxels = np.asfortranarray(40 + 150 * mask + rng.normal(0, 10, mask.shape), dtype=np.float32)
        volume, values = Volume(voxels, np.eye(4), "MR"), mask.astype(np.uint8)
        found += items_of(volume, values, {1: "ball"}, grid_of(sam, depth), f"t{n}", run=4)
    return found


@pytest.mark.parametrize("method", [DECODER, ENCODER], ids=["decoder", "slabs"])
def test_an_object_is_followed_and_a_stopped_run_goes_on_following(tmp_path: Path, method: Method) -> None:
    sam, following = small_sam("tiny_vit"), settings(follow=1.0, coarse=0.0)

    def begin(folder: Path, epochs: int, **options: object) -> Run:
        torch.manual_seed(1)
        items = trails(sam, 3, depth=method.depth)
        assert any(item.trail for item in items)
        return Run(adapt(sam, method), items, [], following, folder, Length(epochs=epochs), **options)

    whole = begin(tmp_path / "whole", 2)
    before = weights(whole)
    outcome = whole.go()
    assert any((before[name] != value).any() for name, value in weights(whole).items())
    if method is DECODER:
        count = iter(range(99))
        begin(tmp_path / "again", 2, stop=lambda: next(count) == 4).go()
        again = begin(tmp_path / "again", 2).go(resume=True)
        assert figures(again.rows) == figures(outcome.rows)


def test_following_is_learnt(tmp_path: Path) -> None:
    sam = small_sam("tiny_vit")
    learning = settings(follow=1.0, patience=100)
    torch.manual_seed(1)
    taught = Run(adapt(sam, DECODER), trails(sam, 4), [], learning, tmp_path, Length(epochs=25))
    losses = [row["loss"] for row in taught.go().rows if "loss" in row]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_what_is_kept_is_chosen_by_following_as_well(tmp_path: Path) -> None:
    sam = small_sam("tiny_vit")
    training, held = trails(sam, 3), trails(sam, 2, seed=1)
    for follows, names in ((0.5, {"1 pt", "3 pts", "box", FOLLOWED}), (0.0, {"1 pt", "3 pts", "box"})):
        torch.manual_seed(1)
        folder = tmp_path / str(follows)
        how = settings(follow=follows)
        made = Run(adapt(sam, DECODER), training, held, how, folder, Length(epochs=2))
        outcome = made.go()
        assert made.state.best == max(np.mean([row[name] for name in names]) for row in outcome.rows)
        for row in outcome.rows:
            assert {name for name in row if name.endswith(("pt", "pts", "box", "on"))} == names
            assert all(0 <= row[name] <= 1 for name in names)
