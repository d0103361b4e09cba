"""The loop of training: ignite's engine around steps that a subclass takes, resumable at any of them."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from ignite.engine import Engine, Events
from torch import nn

from medsa.training.checkpoint import Averages, load_state, pack, save_state, unpack
from medsa.training.history import History, Row
from medsa.training.length import Length
from medsa.training.settings import Settings, rate_at

CHECKPOINT, BEST = "checkpoint/state.safetensors", "checkpoint/best.safetensors"


@dataclass(frozen=True)
class Progress:
    """Where a run is: `part` (0..1) of its length, `step`, the mean `loss` and the best Dice of late."""

    part: float
    step: int
    loss: float
    best: float


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `finished`, or stopped and to be resumed; the model then holds its best weights."""

    finished: bool
    steps: int
    seconds: float
    rows: tuple[Row, ...]


class Options(TypedDict, total=False):
    """`stop` is asked after every step that moved the weights; `report` hears of every step.

    `tensorboard` and `mlflow` are those of `History`.
    """

    seed: int
    stop: Callable[[], bool]
    report: Callable[[Progress], None]
    tensorboard: bool
    mlflow: Path | None


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


class Loop(ABC):
    """One run in `folder`: `parameters` learn for `length`, in epochs of about `epoch` steps.

    Every random choice comes from (seed, step), so that a run that was killed and resumed goes on as if it
    never had been. Parameters called `own.` learn at the settings' `rate`, the others at `adapter_rate`.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        settings: Settings,
        folder: Path,
        length: Length,
        epoch: int,
        *,
        seed: int = 0,
        stop: Callable[[], bool] = lambda: False,
        report: Callable[[Progress], None] = lambda _: None,
        tensorboard: bool = False,
        mlflow: Path | None = None,
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.parameters, self.settings, self.folder = parameters, settings, folder
        self.length, self.seed = length, seed
        self.epoch_length = settings.accumulate * max(1, epoch // settings.accumulate)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": found, "peak": rate}
                for copied, rate in ((True, settings.rate), (False, settings.adapter_rate))
                if (found := [p for name, p in parameters.items() if name.startswith("own.") is copied])
            ],
            lr=0.0, weight_decay=settings.weight_decay, foreach=True,
        )  # fmt: skip
        self.averages = Averages(parameters, settings.ema)
        self.device = next(iter(parameters.values())).device
        self.state = _State()
        self.stop, self.report, self.tensorboard, self.mlflow = stop, report, tensorboard, mlflow
        self._stopped = False

    @abstractmethod
    def learn(self, step: int, rng: np.random.Generator) -> float:
        """Backward from the loss of one step, over `accumulate`; returns its mean."""

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Dice on what is held out, by prompt, of the weights as they are; empty where nothing is."""

    def go(self, *, resume: bool = False) -> Outcome:
        """Train to the end or until stopped; raises `WeightsError` for a checkpoint that does not fit."""
        if resume:
            self._restore()
        state = self.state
        history = History(
            self.folder, state.rows, settings=self.settings.model_dump(),
            tensorboard=self.tensorboard, mlflow=self.mlflow,
        )  # fmt: skip
        if not state.rows:
            self._measure(history)
        self._started = time.monotonic() - state.seconds
        if not self._ended():
            self._engine(history).run([None] * self.epoch_length)
        if not self._stopped and state.rows[-1]["step"] < state.step:
            self._measure(history)
        self._save()
        history.close()
        if not self._stopped:
            self._finish()
        return Outcome(not self._stopped, state.step, state.seconds, tuple(state.rows))

    def part(self) -> float:
        """How much (0..1) of the run is done."""
        return self.length.progress(self.state.step / self.epoch_length, self.state.seconds, self.state.step)

    def walk(self, step: int, count: int, taken: int) -> list[int]:
        """Which `taken` of `count` a step takes: all in an order of its own, again and again."""
        places = range(step * taken, (step + 1) * taken)
        rounds = {place // count for place in places}
        orders = {n: np.random.default_rng((self.seed, 1, n)).permutation(count) for n in rounds}
        return [int(orders[place // count][place % count]) for place in places]

    def _ended(self) -> bool:
        return self.part() >= 1 or self.state.since >= self.settings.patience

    def _engine(self, history: History) -> Engine:
        engine = Engine(self._step)
        logging.getLogger("ignite.engine.engine").setLevel(logging.CRITICAL)  # what ends it is raised anyway
        last = {"max_epochs": self.length.epochs or 10**6, "epoch_length": self.epoch_length}
        engine.load_state_dict({"iteration": self.state.step, **last})
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch, history)
        return engine

    def _step(self, engine: Engine, _: None) -> float:
        step = engine.state.iteration - 1
        loss = self.learn(step, np.random.default_rng((self.seed, step)))
        if (step + 1) % self.settings.accumulate == 0:
            self._move()
        self.state.step = step + 1
        self.state.losses.append(loss)
        return loss

    def _move(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        rate = rate_at(self.part(), self.settings.warm_up)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.averages.follow()

    def _after_step(self, engine: Engine) -> None:
        state, last = self.state, self.state.step % self.epoch_length == 0
        state.seconds = time.monotonic() - self._started
        self.report(Progress(self.part(), state.step, float(np.mean(state.losses)), state.best))
        whole = state.step % self.settings.accumulate == 0 and not last  # an epoch ends with its measuring
        if whole and self.stop():
            self._end(engine)
        elif not last and self.part() >= 1:
            engine.terminate()
        elif whole and state.step % self.settings.checkpoint_steps == 0:
            self._save()

    def _after_epoch(self, engine: Engine, history: History) -> None:
        self._measure(history)
        self._save()
        if self._ended():
            engine.terminate()
        elif self.stop():
            self._end(engine)

    def _end(self, engine: Engine) -> None:
        self._stopped = True
        engine.terminate()

    def _measure(self, history: History) -> None:
        """A row of the history; the running means are kept when they are the best so far."""
        state = self.state
        row = {
            "step": state.step,
            "epoch": state.step / self.epoch_length,
            "seconds": round(state.seconds, 1),
            "rate": self.optimizer.param_groups[0]["lr"],
        }
        if state.losses:
            row["loss"] = float(np.mean(state.losses))
        self.averages.swap()
        if found := self.scores():
            row |= found
            score = float(np.mean(list(found.values())))
            state.since = 0 if score > state.best else state.since + 1
            if score > state.best:
                state.best = score
                save_state(self.folder / BEST, {n: p.detach() for n, p in self.parameters.items()}, {})
        self.averages.swap()
        state.losses = []
        state.rows.append(row)
        history.record(row)

    def _save(self) -> None:
        self.state.averaged = self.averages.steps
        tensors = pack(self.parameters, self.averages, self.optimizer)
        save_state(self.folder / CHECKPOINT, tensors, vars(self.state))

    def _restore(self) -> None:
        tensors, state = load_state(self.folder / CHECKPOINT)
        unpack(tensors, self.parameters, self.averages, self.optimizer)
        self.state = _State(**state)
        self.averages.steps = self.state.averaged

    def _finish(self) -> None:
        """The model gets the weights to keep: the best ones, or the running means."""
        if self.state.best < 0:
            self.averages.swap()
            return
        best, _ = load_state(self.folder / BEST)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(best[name])
