"""The training engine: the loop around simulated clicks; of the model adapters alone learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medsa.adapters.inject import AdaptedSam
from medsa.prompts.mixture import Interaction, draw
from medsa.sam.precision import autocast
from medsa.sam.promptable import Promptable
from medsa.training.augment import Augmenter
from medsa.training.embeddings import EmbeddingStore
from medsa.training.interaction import Decoder, Training, follow, interact
from medsa.training.items import TRAIL, Grid, Item, evenly, targets
from medsa.training.length import Length
from medsa.training.loop import Loop, Options, Outcome
from medsa.training.losses import cost
from medsa.training.settings import Settings
from medsa.training.validation import along_trails, by_prompt

EMBEDDINGS = "embeddings"
ENCODER = ("encoder.", "own.image_encoder.")
"""What names of parameters of the image encoder begin with."""
TOGETHER = 4
"""Slices that go through the image encoder at a time."""


class Run(Loop):
    """One run of training in `folder`: `model` learns from `training`, measured on `validation`."""

    def __init__(
        self,
        model: AdaptedSam,
        training: Sequence[Item],
        validation: Sequence[Item],
        settings: Settings,
        folder: Path,
        length: Length,
        **options: Unpack[Options],
    ) -> None:
        parameters = {name: parameter for _, name, parameter in model.trained_parameters()}
        objects = {(item.label, id(item.picture.pixels[item.at])) for item in training}  # slabs share slices
        epoch = min(len(objects), settings.epoch_items) // settings.batch
        super().__init__(parameters, settings, folder, length, epoch, **options)
        self.model = model
        self.groups = _by_picture(training) if model.changes_encoder else [[item] for item in training]
        self.taken = max(1, round(settings.batch * len(self.groups) / max(1, len(training))))
        held = [item for item in validation if item.around is None]
        self.validation = evenly(held, settings.validation_items)
        trails = [item for item in held if item.trail] if settings.follow else []
        self.trails = evenly(trails, settings.validation_items // 2)
        self.follows = any(not name.startswith(ENCODER) for name in parameters)
        self.decoder = Decoder(model)
        self.store = None if model.changes_encoder else EmbeddingStore(model.base, folder / EMBEDDINGS)
        pooled = self.store is not None and model.embedding_size % 2 == 0
        halves = (pooled or model.takes_any_size) and bool(self.decoder.folded)
        self.coarse = Decoder(model, model.embedding_size // 2) if halves else None
        augments = self.store is None and settings.augmentation.any
        self.augmenter = Augmenter(settings.augmentation) if augments else None

    def go(self, *, resume: bool = False) -> Outcome:
        """As `Loop.go`; embeddings, which only a resumed run needs, go at the end."""
        outcome = super().go(resume=resume)
        if outcome.finished and self.store is not None:
            self.store.remove()
        return outcome

    def learn(self, step: int, rng: np.random.Generator) -> float:
        """Clicks on the items of a step, or an object followed through its slices."""
        coarse = self.coarse is not None and self.part() < self.settings.coarse
        groups = self._batch(step, rng)
        followed = [item for group in groups for item in group if item.trail]
        if followed and self.follows and rng.random() < self.settings.follow:
            return self._follow(followed, rng, coarse)
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
        return total / rounds

    def scores(self) -> dict[str, float]:
        """Mean Dice of held-out items by prompt, and along their trails."""
        if not self.validation:
            return {}
        found = by_prompt(self.decoder, self._alone, self.validation)
        return found | along_trails(self.decoder, self._alone, self.trails)

    def _follow(self, items: Sequence[Item], rng: np.random.Generator, coarse: bool) -> float:
        """Backward from each slice of the items' trails; the mean of their losses.

        The encoder learns nothing from it, so that a method of the encoder alone follows none.
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
        return total / max(1, rounds)

    def _interaction(self, items: Sequence[Item], rng: np.random.Generator) -> Interaction:
        drawn = draw(self.settings.prompts, rng)
        absent = any(item.around is not None for item in items)
        return replace(drawn, start="box") if absent else drawn

    def _batch(self, step: int, rng: np.random.Generator) -> list[list[Item]]:
        """The items of a step by picture, at most a batch of each."""
        found = []
        for n in self.walk(step, len(self.groups), self.taken):
            group = self.groups[n]
            most = min(len(group), self.settings.batch)
            found.append([group[k] for k in rng.permutation(len(group))[:most]])
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
            groups = [self._augmented(group, rng) for group in groups]
        items = [item for group in groups for item in group]
        slabs = self.store is None and len(items[0].picture.pixels) > 1
        together = slabs and learning and bool(rng.random() < self.settings.neighbours)
        embedding = self._embeddings(groups, coarse, together)
        return [item.coarser() for item in items] if coarse else items, embedding

    def _augmented(self, group: Sequence[Item], rng: np.random.Generator) -> list[Item]:
        """The items changed, or as they are where an object would leave the picture: nobody asks for it."""
        assert self.augmenter is not None  # noqa: S101
        changed = self.augmenter(group, rng)
        return changed if all(item.prompted.any() for item in changed) else list(group)

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


def _by_picture(items: Sequence[Item]) -> list[list[Item]]:
    """Items that share a picture, and apart from them each one without an object."""
    groups: dict[int, list[Item]] = {}
    for item in items:
        groups.setdefault(id(item.picture if item.around is None else item), []).append(item)
    return list(groups.values())


def grid_of(sam: Promptable, depth: int = 1) -> Grid:
    """What `sam` takes, in slabs of `depth`: the grid that items are made for."""
    return Grid(sam.config, sam.image_size, 4 * sam.embedding_size, depth)
