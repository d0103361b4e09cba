"""From labelled cases to an adapter version: one run in one folder, resumable, measured before and after."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medsa.adapters.inject import AdaptedSam, adapt
from medsa.adapters.method import Method, read_method
from medsa.adapters.state import TENSORS, load_adapter, read_card, save_adapter
from medsa.data.window import choose_window
from medsa.errors import BadInputError, CancelledError, ConfigurationError
from medsa.evaluation.protocol import Case, mean, measure
from medsa.files import read_record, write_atomically
from medsa.sam import Sam
from medsa.sam.backbone import PromptKind
from medsa.segmenter import Segmenter
from medsa.training.engine import Run, grid_of
from medsa.training.items import Item, evenly, items_of, labels_of, with_few_empty
from medsa.training.length import Length
from medsa.training.loop import CHECKPOINT, Progress
from medsa.training.settings import Settings, read_settings

CONFIG, CANDIDATE, DECODER, TRAINED = "config.json", "candidate", "decoder", "trained.json"
METRICS = ("1 pt", "3 pts", "10 pts", "auc", "box", "background")

Told = Callable[[str, float], None]
"""Told what is being done ("reading", "training", "measuring") and which part (0..1) of it is done."""


@dataclass(frozen=True)
class Request:
    """What is to be trained, for how long and how.

    `method` is a name of configs/methods, or a method by itself.
    `labels` are values and names of what is learnt; empty: every label of every case under its own name.
    `start` is the folder of the adapter version to go on from; another `method` is placed on top of it, where
    it taught parts of the base only (see `adapt`). `measured` cases of the held-out ones are
    measured before and after, as users get them.
    """

    method: str | Method | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    length: Length = field(default_factory=lambda: Length(minutes=30))
    settings: Settings = field(default_factory=lambda: read_settings("default"))
    start: Path | None = None
    seed: int = 0
    window: str = "auto"
    measured: int = 12


@dataclass(frozen=True)
class Trained:
    """A finished run: the `candidate` folder, and mean Dice by prompt `before` and `after`, if measured."""

    candidate: Path
    metrics: Mapping[str, Mapping[str, float]]
    seconds: float
    steps: int

    def keep(self, path: Path, **more: object) -> None:
        """Write its steps, its seconds and what else is known to `path`, as JSON."""
        write_atomically(path, json.dumps({"steps": self.steps, "seconds": self.seconds, **more}).encode())


def train(
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
    """Train an adapter on `sam` in `folder` and write it to `folder`/candidate.

    Where the settings say `decoder_first`, a method of the encoder that starts anew is placed on a decoder
    that has learnt from the same cases before, in `folder`/decoder: on embeddings that are computed once it
    learns much faster.

    Ids of cases must be hashes already: they stand in the card. Raises `CancelledError` when `stop()` turned
    true (the checkpoint stays, to be resumed), `ConfigurationError` for a method that cannot be trained here,
    for a folder that holds another run or, with `resume`, none, `BadInputError` when nothing can be learnt.
    """
    share = request.settings.decoder_first if _starts_anew(sam, request) else 0.0

    def phase(
        folder: Path, request: Request, start: Path | None, first: float, last: float, again: bool
    ) -> Trained:
        return _train(
            sam, training, validation, folder, request, start, resume=again, report=report, stop=stop,
            told=lambda what, part: told(what, first + (last - first) * part if what == "training" else part),
            tensorboard=tensorboard, mlflow=mlflow,
        )  # fmt: skip

    if not share:
        return phase(folder, request, request.start, 0, 1, resume)
    lengths, record = request.length.split(share), folder / DECODER / TRAINED
    if not (resume and record.is_file()):
        alone = replace(request, method="decoder_prompt", length=lengths[0], measured=0)
        phase(folder / DECODER, alone, request.start, 0, share, resume).keep(record)
    before = read_record(record, dict, "steps", "seconds")
    again = resume and (folder / CHECKPOINT).is_file()
    done = phase(folder, replace(request, length=lengths[1]), folder / DECODER / CANDIDATE, share, 1, again)
    return replace(done, seconds=before["seconds"] + done.seconds, steps=before["steps"] + done.steps)


def _train(
    sam: Sam,
    training: Sequence[Case],
    validation: Sequence[Case],
    folder: Path,
    request: Request,
    start: Path | None,
    *,
    resume: bool,
    told: Told,
    report: Callable[[Progress], None],
    stop: Callable[[], bool],
    tensorboard: bool,
    mlflow: Path | None,
) -> Trained:
    """One run from the adapter `start`; "before" is `request.start` whatever was learnt meanwhile."""
    model = _model(sam, request, start)
    prepare(folder, request, model.method, resume)
    sides: dict[str, list[Item]] = {"training": [], "validation": []}
    shuffled = [training[n] for n in np.random.default_rng(request.seed).permutation(len(training))]
    studies = [*(("training", case) for case in shuffled), *(("validation", case) for case in validation)]
    most, room = _slices(training, request, model)
    for done, (side, case) in enumerate(studies, start=1):
        if stop():
            raise CancelledError("stopped while reading")
        told("reading", done / len(studies))
        if side == "validation":
            sides[side] += _items(sam, case, request, model.method.depth, most, _run(request))
        elif room > 0:
            found = _items(sam, case, request, model.method.depth, most, _run(request))
            room -= len({id(part.picture) for item in found for part in (item, *item.trail)})
            sides[side] += found
    if not sides["training"]:
        raise BadInputError("nothing to learn: no training study holds one of the labels")
    learnt = with_few_empty(sides["training"], request.settings.empty)
    if _names(model, request):
        model.learn_names(labels_of(learnt))
    if _run(request) > 1 and any(item.trail for item in learnt):
        model.trained_prompts = (*dict.fromkeys((*model.trained_prompts, "neighbour")),)

    def heard(now: Progress) -> None:
        report(now)
        told("training", now.part)

    run = Run(
        model, learnt, sides["validation"], request.settings, folder, request.length,
        seed=request.seed, stop=stop, report=heard, tensorboard=tensorboard, mlflow=mlflow,
    )  # fmt: skip
    outcome = run.go(resume=resume)
    if not outcome.finished:
        raise CancelledError("stopped; the checkpoint is kept")
    metrics = _measured(sam, model, validation, request, told)
    save_adapter(
        model,
        folder / CANDIDATE,
        labels=labels_of(learnt),
        studies={side: tuple(sorted({item.study for item in items})) for side, items in sides.items()},
        metrics=metrics,
        parent=request.start.name if request.start else None,
    )
    return Trained(folder / CANDIDATE, metrics, outcome.seconds, outcome.steps)


def _starts_anew(sam: Sam, request: Request) -> bool:
    """Whether an adapter of the encoder begins, on the backbone or on taught parts of it."""
    if request.method is None:
        return False
    model = adapt(sam, request.method)
    _refuse_what_cannot_learn(model)
    anew = request.start is None or read_card(request.start).method.name != model.method.name
    return anew and model.changes_encoder


def _model(sam: Sam, request: Request, start: Path | None) -> AdaptedSam:
    method = request.method
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        if start is None:
            model = adapt(sam, method or "decoder_prompt")
        else:
            model = load_adapter(sam, start)
            started = model.method if isinstance(method, Method) else model.method.name
            if method is not None and method != started:
                model = adapt(sam, method, onto=model)
    _refuse_what_cannot_learn(model)
    known: tuple[PromptKind, ...] = ("point", "box", "mask")
    model.trained_prompts = (*known, "neighbour") if "neighbour" in model.trained_prompts else known
    model.multimask = True
    return model.to(sam.dense_pe.device).eval()


def _names(model: AdaptedSam, request: Request) -> bool:
    """Whether labels are told: the method that is asked for, or the adapter it starts from, can be."""
    method = read_method(request.method) if isinstance(request.method, str) else request.method
    return model.method.names is not None or (method is not None and method.names is not None)


def _refuse_what_cannot_learn(model: AdaptedSam) -> None:
    method = model.method
    if method.head is not None:
        raise ConfigurationError(
            f"{method.name} is a multi-class segmenter, which clicks cannot teach: choose another method"
        )
    if not any(True for _ in model.trained_parameters()):
        raise ConfigurationError(f"{method.name} has nothing that could be trained: choose another method")


def _digest(version: Path) -> str:
    """What an adapter version is, wherever it lies."""
    return hashlib.sha256((version / TENSORS).read_bytes()).hexdigest()


def prepare(folder: Path, request: Request, method: Method, resume: bool) -> None:
    """Make the run's folder and write config.json, or with `resume` check that it says the same."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    wanted: dict[str, Any] = {
        "method": method.model_dump(mode="json"),
        "labels": {str(value): name for value, name in request.labels.items()},
        "epochs": request.length.epochs,
        "minutes": request.length.minutes,
        "steps": request.length.steps,
        "settings": request.settings.model_dump(mode="json"),
        "start": _digest(request.start) if request.start else None,
        "seed": request.seed,
        "window": request.window,
    }
    path = folder / CONFIG
    if not resume:
        if (folder / CHECKPOINT).exists():
            raise ConfigurationError(f"'{folder}' holds a run already: resume it, or choose another folder")
        write_atomically(path, json.dumps(wanted, indent=2).encode())
        return
    if not (folder / CHECKPOINT).is_file() or not path.is_file():
        raise ConfigurationError(f"'{folder}' holds no checkpoint to resume from")
    known = read_record(path, dict)
    changed = sorted(name for name in wanted if known.get(name) != wanted[name])
    if changed:
        raise ConfigurationError(f"the run in '{folder}' was started with other {' and '.join(changed)}")


def _slices(training: Sequence[Case], request: Request, model: AdaptedSam) -> tuple[int, float]:
    """Slices of each label of a study, and pictures of all of them: no more than may be embedded.

    Where objects are followed it is at least a run of neighbours, of fewer studies.
    """
    if model.changes_encoder or not training:
        return request.settings.slices, float("inf")
    pictures, labels = request.settings.pictures, max(1, len(request.labels))
    most = min(request.settings.slices, pictures // (labels * len(training)))
    return max(1, _run(request), most), pictures


def _run(request: Request) -> int:
    """Neighbouring slices that are taken together; 1 where nothing is followed."""
    return request.settings.run if request.settings.follow else 1


def _items(sam: Sam, case: Case, request: Request, depth: int, most: int, run: int) -> list[Item]:
    volume, mask, names = case.read()
    return items_of(
        volume, np.asarray(mask), request.labels or names, grid_of(sam, depth), case.id,
        most=most, empty=request.settings.empty > 0, run=run, window=choose_window(volume, request.window),
    )  # fmt: skip


def _measured(
    sam: Sam, model: AdaptedSam, validation: Sequence[Case], request: Request, told: Told
) -> dict[str, dict[str, float]]:
    """Mean Dice over held-out patients, by prompt, of what there was before and of what was learnt."""
    chosen = evenly(validation, request.measured)
    if not chosen:
        return {}
    first = Segmenter(sam)
    before = sam if request.start is None else load_adapter(sam, request.start)
    rows = measure(
        {"before": first.beside(before), "after": first.beside(model)},
        chosen,
        window=request.window,
        progress=lambda done: told("measuring", done / len(chosen)),
    )
    return {
        name: {metric: round(mean(found, metric), 4) for metric in METRICS if found}
        for name, found in rows.items()
    }
