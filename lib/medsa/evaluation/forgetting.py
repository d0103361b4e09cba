"""The forgetting set: objects that every machine has and no site trains on, to see what a model still can.

A drawn abdomen and the MNI152 brain that nilearn ships. They never change, so that figures of years compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsa.data.phantom import draw_abdomen
from medsa.data.volume import Volume


@dataclass(frozen=True)
class DrawnAbdomen:
    """A drawn CT of `shape`, its organs and the spine."""

    shape: tuple[int, int, int] = (160, 160, 12)
    seed: int = 20
    id: str = "drawn abdomen"
    patient: str = "drawn abdomen"

    def read(self) -> tuple[Volume, NDArray[np.uint8], Mapping[int, str]]:
        """HU, masks and names."""
        hounsfield, truth, spacing = draw_abdomen(self.shape, self.seed)
        mask, names = np.zeros(self.shape, np.uint8, order="F"), dict(enumerate(truth, start=1))
        for value, name in names.items():
            mask[truth[name]] = value
        return Volume(hounsfield, np.diag([*spacing, 1.0]), "CT"), mask, names


@dataclass(frozen=True)
class TemplateBrain:
    """The MNI152 T1 template at 2 mm: the brain in the head."""

    id: str = "template brain"
    patient: str = "template brain"

    def read(self) -> tuple[Volume, NDArray[np.uint8], Mapping[int, str]]:
        """Intensities, masks and names."""
        from nilearn import datasets

        image = datasets.load_mni152_template(resolution=2)
        brain = datasets.load_mni152_brain_mask(resolution=2).get_fdata() > 0.5
        voxels = np.asfortranarray(image.get_fdata(), dtype=np.float32)
        return Volume(voxels, image.affine, "MR"), np.asfortranarray(brain, dtype=np.uint8), {1: "brain"}


FORGETTING = (DrawnAbdomen(), TemplateBrain())
