"""The training engine: MONAI's trainer around the interaction loop, adapters only, resumable at any step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from torch import Tensor
from torch.nn import functional as F

from medsa.adapters.inject import AdaptedSam
from medsa.prompts.mixture import Interaction, draw
from medsa.sam.precision import autocast
from medsa.sam.promptable import Promptable
from medsa.sam.tiny_vit import TinyViT
from medsa.training.augment import Augmenter
from medsa.training.checkpoint import Averages, load_state, pack, save_state, unpack
from medsa.training.embeddings import EmbeddingStore
from medsa.training.history import History, Row
from medsa.training.interaction import Decoder, Training, follow, interact
from medsa.training.items import TRAIL, Grid, Item, evenly, targets
from medsa.training.length import Length
from medsa.training.losses import cost
from medsa.training.settings import Settings, rate_at
from medsa.training.validation import along_trails, by_prompt

CHECKPOINT, BEST, EMBEDDINGS = "checkpoint/state.safetensors", "checkpoint/best.safetensors", "embeddings"
TOGETHER = 4
"""Slices that go through the image encoder at a time."""


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


class Run:
    """One run of training in `folder`: `model` learns from `training`, measured on `validation`.

    Every random choice comes from (seed, step), so that a run that was killed and resumed goes on as if it
    never had been. `stop` is asked after every step; `report` hears of every step.
    """

    def __init__(
        self,
        model: AdaptedSam,
        training: Sequence[Item],
        validation: Sequence[Item],
        settings: Settings,
        folder: Path,
        length: Length,
        *,
        seed: int = 0,
        stop: Callable[[], bool] = lambda: False,
        report: Callable[[Progress], None] = lambda _: None,
        tensorboard: bool = False,
        mlflow: Path | None = None,
    ) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.model, self.settings, self.folder, self.length = model, settings, folder, length
        self.seed, self.stop, self.report = seed, stop, report
        self.groups = _by_picture(training) if model.changes_encoder else [[item] for item in training]
        self.taken = max(1, round(settings.batch * len(self.groups) / max(1, len(training))))
        held = [item for item in validation if item.around is None]
        self.validation = evenly(held, settings.validation_items)
        trails = [item for item in held if item.trail] if settings.follow else []
        self.trails = evenly(trails, settings.validation_items // 2)
        self.parameters = {name: parameter for _, name, parameter in model.trained_parameters()}
        self.optimizer = torch.optim.AdamW(
            [
                {"params": found, "peak": rate}
                for copied, rate in ((True, settings.rate), (False, settings.adapter_rate))
                if (found := [p for name, p in self.parameters.items() if name.startswith("own.") is copied])
            ],
            lr=0.0, weight_decay=settings.weight_decay, foreach=True,
        )  # fmt: skip
        self.averages = Averages(self.parameters, settings.ema)
        self.decoder = Decoder(model)
        self.store = None if model.changes_encoder else EmbeddingStore(model.base, folder / EMBEDDINGS)
        any_size = self.store is not None or isinstance(model.base.image_encoder, TinyViT)
        halves = any_size and model.embedding_size % 2 == 0 and bool(self.decoder.folded)
        self.coarse = Decoder(model, model.embedding_size // 2) if halves else None
        augments = self.store is None and settings.augmentation.any
        self.augmenter = Augmenter(settings.augmentation) if augments else None
        steps = min(len(training), settings.epoch_items) // settings.batch
        self.epoch_length = settings.accumulate * max(1, steps // settings.accumulate)
        self.state = _State()
        self.tensorboard, self.mlflow = tensorboard, mlflow
        self._stopped = False

    def go(self, *, resume: bool = False) -> Outcome:
        """Train to the end or until stopped; raises `WeightsError` for a checkpoint that does not fit."""
        if resume:
            self._restore()
        history = History(
            self.folder,
            self.state.rows,
            settings=self.settings.model_dump(),
            tensorboard=self.tensorboard,
            mlflow=self.mlflow,
        )
        if not self.state.rows:
            self._measure(history)
        self._started = time.monotonic() - self.state.seconds
        trainer = self._trainer(history)
        logging.getLogger("ignite.engine.engine").setLevel(logging.WARNING)
        trainer.run()
        if not self._stopped and self.state.rows[-1]["step"] < self.state.step:
            self._measure(history)
        history.close()
        if not self._stopped:
            self._finish()
        return Outcome(not self._stopped, self.state.step, self.state.seconds, tuple(self.state.rows))

    def _trainer(self, history: History) -> SupervisedTrainer:
        epochs = self.length.epochs or 10**6
        trainer = SupervisedTrainer(
            device=self.model.dense_pe.device,
            max_epochs=epochs,
            train_data_loader=[None] * self.epoch_length,
            epoch_length=self.epoch_length,
            network=self.model,
            optimizer=self.optimizer,
            loss_function=cost,
            iteration_update=self._step,
        )
        trainer.state.iteration = self.state.step
        trainer.state.epoch = self.state.step // self.epoch_length
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_step)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._after_epoch, history)
        return trainer

    def _step(self, engine: Engine, _: None) -> float:
        step = engine.state.iteration - 1
        rng = np.random.default_rng((self.seed, step))
        coarse = self.coarse is not None and self._progress() < self.settings.coarse
        groups = self._batch(step, rng)
        followed = [item for group in groups for item in group if item.trail]
        if followed and rng.random() < self.settings.follow:
            return self._done(step, *self._follow(followed, rng, coarse))
        items, embedding = self._embedded(groups, rng, coarse)
        decoder = self.coarse if self.coarse is not None and coarse else self.decoder
        leaf = embedding.detach().requires_grad_(embedding.requires_grad)
        total, rounds = 0.0, 0
        interaction, annotator = self._interaction(items, rng), Training(self.settings.prompts, rng)
        truth, valid = targets(items, leaf)
        with self._decoding():
            for answer in interact(decoder, leaf, items, interaction, annotator):
                with torch.autocast(leaf.device.type, enabled=False):
                    priced = cost(answer.logits, answer.scores, truth, valid, self.settings.loss)
                (priced.loss / self.settings.accumulate).backward()
                total, rounds = total + float(priced.loss.detach()), rounds + 1
        if leaf.grad is not None:
            embedding.backward(leaf.grad)
        return self._done(step, total, rounds)

    def _follow(self, items: Sequence[Item], rng: np.random.Generator, coarse: bool) -> tuple[float, int]:
        """Backward from each slice of the items' trails; the sum of their losses and how many there were.

        The encoder learns nothing from it.
        """
        items = [item.coarser() for item in items] if coarse else items
        decoder = self.coarse if self.coarse is not None and coarse else self.decoder
        annotator = Training(self.settings.prompts, rng) if rng.random() < 0.5 else None
        named = bool(rng.random() < self.settings.prompts.named)
        length, total, rounds = int(rng.integers(2, TRAIL + 1)), 0.0, 0

        embedded = partial(self._alone, coarse=coarse)
        with self._decoding():
            for beside, answer in follow(decoder, embedded, items, length, annotator, named=named):
                truth, valid = targets(beside, answer.logits)
                with torch.autocast(truth.device.type, enabled=False):
                    priced = cost(answer.logits, answer.scores, truth, valid, self.settings.loss)
                if priced.loss.requires_grad:
                    (priced.loss / (length * self.settings.accumulate)).backward()
                total, rounds = total + float(priced.loss.detach()), rounds + 1
        return total, max(1, rounds)

    def _done(self, step: int, total: float, rounds: int) -> float:
        """The mean loss of a step of so many rounds, after which the optimizer has moved if it is due."""
        if (step + 1) % self.settings.accumulate == 0:
            self._move()
        self.state.step = step + 1
        self.state.losses.append(total / rounds)
        return total / rounds

    def _move(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        part = rate_at(self._progress(), self.settings.warm_up)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * part
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.averages.follow()

    def _progress(self) -> float:
        return self.length.progress(self.state.step / self.epoch_length, self.state.seconds, self.state.step)

    def _interaction(self, items: Sequence[Item], rng: np.random.Generator) -> Interaction:
        drawn = draw(self.settings.prompts, rng)
        absent = any(item.around is not None for item in items)
        return replace(drawn, start="box") if absent else drawn

    def _batch(self, step: int, rng: np.random.Generator) -> list[list[Item]]:
        """The items of a step by picture: a walk through all in an order of its own, again and again."""
        size, count = self.taken, len(self.groups)
        found = []
        for place in range(step * size, (step + 1) * size):
            order = np.random.default_rng((self.seed, 1, place // count)).permutation(count)
            group = self.groups[order[place % count]]
            most = min(len(group), self.settings.batch)
            found.append([group[n] for n in rng.permutation(len(group))[:most]])
        return found

    def _embedded(
        self, groups: Sequence[list[Item]], rng: np.random.Generator, coarse: bool = False
    ) -> tuple[list[Item], Tensor]:
        """The items, augmented where the encoder learns, and their embeddings (N, C, h, w).

        `coarse` gives both on a grid of half the side. Of slabs it is drawn whether the slices see each
        other: a served model must do with either.
        """
        learning = torch.is_grad_enabled()
        if self.augmenter is not None and learning:
            groups = [self.augmenter(group, rng) for group in groups]
        items = [item for group in groups for item in group]
        slabs = self.store is None and len(items[0].picture.pixels) > 1
        together = slabs and learning and bool(rng.random() < self.settings.neighbours)
        embedding = self._embeddings(groups, coarse, together)
        return [item.coarser() for item in items] if coarse else items, embedding

    def _alone(self, items: Sequence[Item], coarse: bool = False) -> Tensor:
        """Embeddings (N, C, h, w) of items, each slice by itself; the encoder learns nothing from it."""
        with torch.no_grad():
            return self._embeddings([[item] for item in items], coarse)

    def _embeddings(self, groups: Sequence[Sequence[Item]], coarse: bool, together: bool = False) -> Tensor:
        """Embeddings of the items of each group, which share a picture: its slab's `together`, or not."""
        if self.store is not None:
            pictures = [item.picture for group in groups for item in group]
            known = torch.cat([self.store.get(picture) for picture in pictures]).to(self.model.dense_pe)
            return F.avg_pool2d(known, 2) if coarse else known
        with autocast(self.model.dense_pe.device):
            if together:
                slabs = [self.model.encode(self._images(group[0], coarse)[None])[0] for group in groups]
                found = [slab[[item.at for item in group]] for slab, group in zip(slabs, groups, strict=True)]
                return torch.cat(found).float()
            items = [item for group in groups for item in group]
            slices = {(id(item.picture), item.at): item for item in items}  # labels and trails share them
            images = torch.stack([self._images(item, coarse)[item.at] for item in slices.values()])
            seen = torch.cat([self.model.encode(part) for part in images.split(TOGETHER)])
            places = {key: n for n, key in enumerate(slices)}
            return seen[[places[id(item.picture), item.at] for item in items]].float()

    def _images(self, item: Item, coarse: bool) -> Tensor:
        """(D, 3, S, S): the slab of an item, as the encoder takes it."""
        images = item.picture.image(self.model.base.config).to(self.model.dense_pe)
        return F.avg_pool2d(images, 2) if coarse else images

    def _decoding(self) -> torch.autocast:
        """bfloat16 on a GPU that has it; on a CPU decoders compute in float32, as they will serve."""
        device = self.model.dense_pe.device
        return autocast(device, enabled=device.type == "cuda")

    def _after_step(self, engine: Engine) -> None:
        state, last = self.state, self.state.step % self.epoch_length == 0
        state.seconds = time.monotonic() - self._started
        self.report(Progress(self._progress(), state.step, float(np.mean(state.losses)), state.best))
        whole = state.step % self.settings.accumulate == 0 and not last  # an epoch ends with its measuring
        if whole and self.stop():
            self._end(engine)
        elif (self.length.minutes or self.length.steps) is not None and self._progress() >= 1:
            engine.terminate()
        elif whole and state.step % self.settings.checkpoint_steps == 0:
            self._save()

    def _after_epoch(self, engine: Engine, history: History) -> None:
        self._measure(history)
        self._save()
        if self.validation and self.state.since >= self.settings.patience:
            engine.terminate()
        elif self.stop():
            self._end(engine)

    def _end(self, engine: Engine) -> None:
        self._stopped = True
        self._save()
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
        if self.validation:
            self.averages.swap()
            found = by_prompt(self.decoder, self._alone, self.validation)
            found |= along_trails(self.decoder, self._alone, self.trails)
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
        """The model gets the weights to keep; what only a resumed run needs goes."""
        if self.validation:
            best, _ = load_state(self.folder / BEST)
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(best[name])
        else:
            self.averages.swap()
        if self.store is not None:
            self.store.remove()


def _by_picture(items: Sequence[Item]) -> list[list[Item]]:
    """Items that share a picture, and apart from them each one without an object."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(id(item.picture if item.around is None else item), []).append(item)
    return list(groups.values())


def grid_of(sam: Promptable, depth: int = 1) -> Grid:
    """What `sam` takes, in slabs of `depth`: the grid that items are made for."""
    return Grid(sam.config, sam.image_size, 4 * sam.embedding_size, depth)
