"""A run that teaches a multi-class segmenter whole slabs, without prompts (MA-SAM, section 2.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np
import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.nn import functional as F

from medsa.evaluation.overlap import dice
from medsa.sam.precision import autocast
from medsa.segmenter.classes import Classifier
from medsa.training.augment import Augmenter
from medsa.training.items import Item, evenly
from medsa.training.length import Length
from medsa.training.loop import Loop, Options
from medsa.training.settings import Settings

LOSS = DiceCELoss(
    include_background=False, softmax=True, to_onehot_y=True, batch=True, lambda_dice=0.8, lambda_ce=0.2
)
"""MA-SAM's mixture; Dice is that of a whole step, so that a slice without a label costs nothing by itself."""

Slab = Sequence[Item]
"""All that a slab shows: an item for each label on each of its slices, one empty item where there is none."""


class ClassRun(Loop):
    """One run in `folder`: `parameters` of `classifier` learn from slabs, measured on `validation`."""

    def __init__(
        self,
        classifier: Classifier,
        parameters: Mapping[str, nn.Parameter],
        training: Sequence[Slab],
        validation: Sequence[Slab],
        settings: Settings,
        folder: Path,
        length: Length,
        **options: Unpack[Options],
    ) -> None:
        self.taken = max(1, settings.batch // classifier.depth)
        epoch = min(len(training), settings.epoch_items) // self.taken
        super().__init__(parameters, settings, folder, length, epoch, **options)
        self.classifier, self.training = classifier, training
        self.validation = evenly(validation, settings.validation_items)
        self.augmenter = Augmenter(settings.augmentation) if settings.augmentation.any else None

    def learn(self, step: int, rng: np.random.Generator) -> float:
        """All labels of the slabs of a step."""
        slabs = [self.training[n] for n in self.walk(step, len(self.training), self.taken)]
        if self.augmenter is not None:
            slabs = [self.augmenter(slab, rng) for slab in slabs]
        coarse = self.classifier.takes_any_size and self.part() < self.settings.coarse
        with autocast(self.device):
            logits = torch.cat([self._logits(slab, coarse=coarse) for slab in slabs])
        truth = torch.cat([self._truth(slab) for slab in slabs]).to(logits.device)
        loss = LOSS(logits.float(), truth[:, None])
        (loss / self.settings.accumulate).backward()
        return float(loss.detach())

    def scores(self) -> dict[str, float]:
        """Mean Dice of held-out slabs over the labels that they show."""
        if not self.validation:
            return {}
        found = []
        for slab in self.validation:
            with torch.no_grad():
                answer = self._logits(slab).argmax(dim=1).cpu().numpy()
            truth = self._truth(slab).numpy()
            found += [dice(answer == value, truth == value) for value in np.unique(truth) if value]
        return {"no prompt": float(np.mean(found)) if found else 0.0}

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
