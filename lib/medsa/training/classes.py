"""Training without prompts: labelled studies to a version that segments all labels at once (MA-SAM)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medsa.adapters.inject import AdaptedSam, adapt
from medsa.adapters.method import MaskHead, Method, read_method
from medsa.adapters.state import load_adapter, read_card, save_adapter
from medsa.data.orientation import Orientation
from medsa.data.volume import Volume
from medsa.data.window import choose_window
from medsa.errors import BadInputError, CancelledError, ConfigurationError
from medsa.evaluation.overlap import dice
from medsa.evaluation.protocol import Case
from medsa.sam import Sam
from medsa.segmenter.classes import Classifier, PromptlessSam, classify_volume
from medsa.training.class_run import ClassRun, Slab
from medsa.training.items import Grid, Item, Pictures, evenly
from medsa.training.loop import Outcome, Progress
from medsa.training.train import CANDIDATE, Request, Told, Trained, prepare

CELLS = 256
"""Cells a side, about, on which labels are kept while training."""


def slabs_of_study(
    volume: Volume,
    mask: NDArray[np.uint8],
    labels: Mapping[int, str],
    grid: Grid,
    study: str,
    *,
    most: int,
    window: str = "auto",
) -> list[list[Item]]:
    """At most so many slabs about even slices that hold a label, and a quarter as many about others.

    A volume thinner than `grid.depth` is a thin slab, as it is when it is asked about.
    """
    orientation = Orientation.of(volume)
    volume, mask = orientation.volume(volume), orientation.seen(mask)
    pictures = Pictures(volume, grid, choose_window(volume, window))
    held = np.isin(mask, list(labels)).any(axis=(0, 1))
    chosen = [
        *evenly(np.flatnonzero(held).tolist(), most),
        *evenly(np.flatnonzero(~held).tolist(), max(1, min(most, int(held.sum())) // 4)),
    ]
    return [_slab(pictures, mask, labels, k, study) for k in chosen]


def _slab(
    pictures: Pictures, mask: NDArray[np.uint8], labels: Mapping[int, str], k: int, study: str
) -> list[Item]:
    picture, grid = pictures.around(k), pictures.grid
    found = []
    for at, place in enumerate(pictures.slices(k)):
        for value, name in labels.items():
            small = pictures.frame.mask_to_model(mask[:, :, place] == value, grid.cells)
            if small.any():
                found.append(Item.of(picture, small, name, study, at=at))
    nothing = np.zeros((grid.cells, grid.cells), bool)
    return found or [Item.of(picture, nothing, next(iter(labels.values())), study)]


def train_classes(
    sam: Sam,
    training: Sequence[Case],
    validation: Sequence[Case],
    folder: Path,
    request: Request,
    *,
    resume: bool = False,
    told: Told = lambda _what, _part: None,
    report: Callable[[Progress], None] = lambda _: None,
    stop: Callable[[], bool] = lambda: False,
    tensorboard: bool = False,
    mlflow: Path | None = None,
) -> Trained:
    """Train a method without prompts on `sam` in `folder`; as `medsa.training.train.train`, and raises as it.

    The head gets a class for each label; labels are learnt in the order of their values, which is that of
    the card's `labels`. `request.start` is a version of the same method and labels to go on from.
    """
    labels = labels_of(training, request)
    model = _model(sam, request, tuple(labels.values()))
    classifier = PromptlessSam(model, tuple(labels.values()))
    parameters = {name: parameter for _, name, parameter in model.trained_parameters()}
    prepare(folder, request, model.method, resume)
    outcome = teach(
        classifier, parameters, training, validation, folder, request, labels,
        resume=resume, told=told, report=report, stop=stop, tensorboard=tensorboard, mlflow=mlflow,
    )  # fmt: skip
    metrics = _measured(classifier, validation, labels, request, told)
    save_adapter(
        model,
        folder / CANDIDATE,
        labels=classifier.labels,
        studies={
            "training": tuple(sorted(case.id for case in training)),
            "validation": tuple(sorted(case.id for case in validation)),
        },
        metrics=metrics,
        parent=request.start.name if request.start else None,
    )
    return Trained(folder / CANDIDATE, metrics, outcome.seconds, outcome.steps)


def teach(
    classifier: Classifier,
    parameters: Mapping[str, nn.Parameter],
    training: Sequence[Case],
    validation: Sequence[Case],
    folder: Path,
    request: Request,
    labels: Mapping[int, str],
    *,
    resume: bool,
    told: Told,
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
    tensorboard: bool = False,
    mlflow: Path | None = None,
) -> Outcome:
    """Read the studies and run; raises `CancelledError` when stopped, `BadInputError` without a label."""
    size = classifier.image_size
    grid = Grid(classifier.config, size, size // max(1, size // CELLS), classifier.depth)
    sides: dict[str, list[Slab]] = {"training": [], "validation": []}
    studies = [*(("training", case) for case in training), *(("validation", case) for case in validation)]
    most = max(1, -(-request.settings.slices // classifier.depth))
    for done, (side, case) in enumerate(studies, start=1):
        if stop():
            raise CancelledError("stopped while reading")
        volume, mask, _ = case.read()
        sides[side] += slabs_of_study(
            volume, np.asarray(mask), labels, grid, case.id, most=most, window=request.window
        )
        told("reading", done / len(studies))
    if not any(item.packed.any() for slab in sides["training"] for item in slab):
        raise BadInputError("nothing to learn: no training study holds one of the labels")

    def heard(now: Progress) -> None:
        report(now)
        told("training", now.part)

    run = ClassRun(
        classifier, parameters, sides["training"], sides["validation"], request.settings, folder,
        request.length, seed=request.seed, stop=stop, report=heard, tensorboard=tensorboard, mlflow=mlflow,
    )  # fmt: skip
    outcome = run.go(resume=resume)
    if not outcome.finished:
        raise CancelledError("stopped; the checkpoint is kept")
    return outcome


def labels_of(training: Iterable[Case], request: Request) -> dict[int, str]:
    """What is learnt by value: what the request says, else all that the studies hold."""
    labels = request.labels or {value: name for case in training for value, name in case.read()[2].items()}
    return dict(sorted(labels.items()))


def promptless(sam: Sam, folder: Path) -> PromptlessSam:
    """The version in `folder`, to be asked; raises as `load_adapter`, and for one that needs prompts."""
    model = load_adapter(sam, folder)
    if model.adapters.mask_head is None:
        raise ConfigurationError(f"the adapter {folder.name} needs prompts: it does not segment by itself")
    return PromptlessSam(model, read_card(folder).labels)


def _model(sam: Sam, request: Request, labels: tuple[str, ...]) -> AdaptedSam:
    method = request.method
    if request.start is not None:
        known = promptless(sam, request.start)
        named = method.name if isinstance(method, Method) else method
        if known.labels != labels or named not in (None, known.model.method.name):
            raise ConfigurationError(
                f"the adapter {request.start.name} segments {', '.join(known.labels)} by "
                f"{known.model.method.name}: go on with the same, or start from none"
            )
        return known.model
    method = read_method(method or "ma_sam") if not isinstance(method, Method) else method
    head = MaskHead(kind=method.head.kind if method.head else "progressive", classes=1 + len(labels))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        model = adapt(sam, method.model_copy(update={"head": head}))
    return model.to(sam.dense_pe.device).eval()


def _measured(
    classifier: Classifier,
    validation: Sequence[Case],
    labels: Mapping[int, str],
    request: Request,
    told: Told,
) -> dict[str, dict[str, float]]:
    """Mean Dice of held-out volumes, of all labels and of each."""
    chosen = evenly(validation, request.measured)
    found: dict[str, list[float]] = {name: [] for name in labels.values()}
    for done, case in enumerate(chosen, start=1):
        volume, mask, _ = case.read()
        answer = classify_volume(classifier, volume, window=request.window).mask
        for place, (value, name) in enumerate(labels.items(), start=1):
            if (mask == value).any():
                found[name].append(dice(answer == place, mask == value))
        told("measuring", done / len(chosen))
    each = {name: round(float(np.mean(values)), 4) for name, values in found.items() if values}
    return {"after": {"no prompt": round(float(np.mean(list(each.values()))), 4), **each}} if each else {}
