"""A run that teaches a multi-class segmenter whole slabs, without prompts (MA-SAM, section 2.4)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.nn import functional as F

from medsa.evaluation.overlap import dice
from medsa.sam.precision import autocast
from medsa.segmenter.classes import Classifier
from medsa.training.augment import Augmenter
from medsa.training.checkpoint import Averages, load_state, pack, save_state, unpack
from medsa.training.engine import BEST, CHECKPOINT, Outcome, Progress
from medsa.training.history import History, Row
from medsa.training.items import Item, evenly
from medsa.training.settings import rate_at
from medsa.training.train import Request

LOSS = DiceCELoss(
    include_background=False, softmax=True, to_onehot_y=True, batch=True, lambda_dice=0.8, lambda_ce=0.2
)
"""MA-SAM's mixture; Dice is that of a whole step, so that a slice without a label costs nothing by itself."""

Slab = Sequence[Item]
"""All that a slab shows: an item for each label on each of its slices, one empty item where there is none."""


@dataclass
class _State:
    """What changes in a run besides tensors."""

    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    since: int = 0
    averaged: int = 0
    losses: list[float] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)


class ClassRun:
    """One run in `folder`: `parameters` of `classifier` learn from slabs, as `engine.Run` does from prompts.

    Every random choice comes from (seed, step), so that a run that was killed and resumed goes on as if it
    never had been. `stop` is asked after every step; `report` hears of every step. Parameters called `own.`
    learn at the settings' `rate`, the others at `adapter_rate`.
    """

    def __init__(
        self,
        classifier: Classifier,
        parameters: Mapping[str, nn.Parameter],
        training: Sequence[Slab],
        validation: Sequence[Slab],
        request: Request,
        folder: Path,
        *,
        stop: Callable[[], bool] = lambda: False,
        report: Callable[[Progress], None] = lambda _: None,
        tensorboard: bool = False,
        mlflow: Path | None = None,
    ) -> None:
        settings = request.settings
        self.classifier, self.parameters, self.settings, self.folder = (
            classifier,
            parameters,
            settings,
            folder,
        )
        self.training, self.validation = training, evenly(validation, settings.validation_items)
        self.length, self.seed, self.stop, self.report = request.length, request.seed, stop, report
        self.taken = max(1, settings.batch // classifier.depth)
        self.epoch_length = max(1, min(len(training), settings.epoch_items) // self.taken)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": found, "peak": rate}
                for copied, rate in ((True, settings.rate), (False, settings.adapter_rate))
                if (found := [p for name, p in parameters.items() if name.startswith("own.") is copied])
            ],
            lr=0.0, weight_decay=settings.weight_decay, foreach=True,
        )  # fmt: skip
        self.averages = Averages(parameters, settings.ema)
        self.augmenter = Augmenter(settings.augmentation) if settings.augmentation.any else None
        self.device = next(iter(parameters.values())).device
        self.state = _State()
        self.tensorboard, self.mlflow = tensorboard, mlflow

    def go(self, *, resume: bool = False) -> Outcome:
        """Train to the end or until stopped; raises `WeightsError` for a checkpoint that does not fit."""
        if resume:
            tensors, known = load_state(self.folder / CHECKPOINT)
            unpack(tensors, self.parameters, self.averages, self.optimizer)
            self.state = _State(**known)
            self.averages.steps = self.state.averaged
        state = self.state
        history = History(
            self.folder, state.rows, settings=self.settings.model_dump(),
            tensorboard=self.tensorboard, mlflow=self.mlflow,
        )  # fmt: skip
        finished = self._steps(history)
        if finished and (not state.rows or state.rows[-1]["step"] < state.step):
            self._measure(history)
        history.close()
        self._save()
        if finished:
            self._finish()
        return Outcome(finished, state.step, state.seconds, tuple(state.rows))

    def _steps(self, history: History) -> bool:
        """Whether the run came to its end."""
        state, started = self.state, time.monotonic() - self.state.seconds
        while self._progress() < 1 and (not self.validation or state.since < self.settings.patience):
            self._step(np.random.default_rng((self.seed, state.step)))
            state.seconds = time.monotonic() - started
            self.report(Progress(self._progress(), state.step, float(np.mean(state.losses)), state.best))
            if state.step % self.epoch_length == 0:
                self._measure(history)
                self._save()
            if self.stop():
                return False
            if state.step % self.settings.checkpoint_steps == 0:
                self._save()
        return True

    def _progress(self) -> float:
        return self.length.progress(self.state.step / self.epoch_length, self.state.seconds, self.state.step)

    def _step(self, rng: np.random.Generator) -> None:
        slabs = self._batch(self.state.step)
        if self.augmenter is not None:
            slabs = [self.augmenter(slab, rng) for slab in slabs]
        coarse = self.classifier.takes_any_size and self._progress() < self.settings.coarse
        with autocast(self.device):
            logits = torch.cat([self._logits(slab, coarse=coarse) for slab in slabs])
        truth = torch.cat([self._truth(slab) for slab in slabs]).to(logits.device)
        loss = LOSS(logits.float(), truth[:, None])
        loss.backward()
        self.state.step += 1
        self.state.losses.append(float(loss.detach()))
        if self.state.step % self.settings.accumulate == 0:
            nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
            part = rate_at(self._progress(), self.settings.warm_up)
            for group in self.optimizer.param_groups:
                group["lr"] = group["peak"] * part
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.averages.follow()

    def _batch(self, step: int) -> list[Slab]:
        """The slabs of a step: a walk through all in an order of its own, again and again."""
        count, found = len(self.training), []
        for place in range(step * self.taken, (step + 1) * self.taken):
            order = np.random.default_rng((self.seed, 1, place // count)).permutation(count)
            found.append(self.training[order[place % count]])
        return found

    def _logits(self, slab: Slab, *, coarse: bool = False) -> Tensor:
        """(D, 1 + labels, c, c), c cells of the items' masks; `coarse` from images of half the side."""
        picture, side = slab[0].picture, slab[0].side
        images = picture.image(self.classifier.config).to(self.device)
        logits = self.classifier.classify(F.avg_pool2d(images, 2) if coarse else images)
        if logits.shape[-1] < side:
            return F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
        return F.adaptive_avg_pool2d(logits, side)

    def _truth(self, slab: Slab) -> Tensor:
        """(D, c, c) classes."""
        classes = np.zeros((len(slab[0].picture.pixels), slab[0].side, slab[0].side), np.int64)
        for item in slab:
            classes[item.at][item.mask] = 1 + self.classifier.labels.index(item.label)
        return torch.from_numpy(classes)

    def _measure(self, history: History) -> None:
        """A row of the history; the running means are kept when they are the best so far."""
        state = self.state
        row = {
            "step": state.step,
            "epoch": state.step / self.epoch_length,
            "seconds": round(state.seconds, 1),
            "rate": self.optimizer.param_groups[0]["lr"],
            "loss": float(np.mean(state.losses)) if state.losses else float("nan"),
        }
        if self.validation:
            self.averages.swap()
            row["no prompt"] = score = self._dice()
            state.since = 0 if score > state.best else state.since + 1
            if score > state.best:
                state.best = score
                save_state(self.folder / BEST, {n: p.detach() for n, p in self.parameters.items()}, {})
            self.averages.swap()
        state.losses = []
        state.rows.append(row)
        history.record(row)

    def _dice(self) -> float:
        """Mean Dice of held-out slabs over the labels that they show."""
        found = []
        for slab in self.validation:
            with torch.no_grad():
                answer = self._logits(slab).argmax(dim=1).cpu().numpy()
            truth = self._truth(slab).numpy()
            found += [dice(answer == value, truth == value) for value in np.unique(truth) if value]
        return float(np.mean(found)) if found else 0.0

    def _save(self) -> None:
        self.state.averaged = self.averages.steps
        save_state(
            self.folder / CHECKPOINT, pack(self.parameters, self.averages, self.optimizer), vars(self.state)
        )

    def _finish(self) -> None:
        """The model gets the weights to keep: the best ones, or the running means."""
        if not self.validation:
            self.averages.swap()
            return
        best, _ = load_state(self.folder / BEST)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(best[name])
