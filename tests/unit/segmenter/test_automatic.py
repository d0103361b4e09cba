"""What labelled studies look like is found in others, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medsa.data.phantom import FAT, NOISE, draw_abdomen
from medsa.data.volume import Volume
from medsa.errors import CancelledError
from medsa.evaluation import dice
from medsa.sam import build_sam
from medsa.segmenter import Segmenter
from medsa.segmenter.automatic import agreement, find, learn
from medsa.segmenter.prototypes import Prototypes

SHAPE = (64, 64, 10)
WINDOW = "soft-tissue"


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    """A model with random weights: what it sees is colours, what it answers is of no use."""
    torch.manual_seed(0)
    return Segmenter(build_sam("lite_medsam", image_size=64))


def study(seed: int) -> tuple[Volume, np.ndarray]:
    """A drawn CT, and where its liver is."""
    values, truth, spacing = draw_abdomen(SHAPE, seed)
    return Volume(values, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]), "CT"), truth["liver"]


@pytest.fixture(scope="module")
def prototypes(segmenter) -> Prototypes:
    """Of the livers of two studies."""
    return Prototypes.joined(
        [learn(segmenter, volume, liver, window=WINDOW) for volume, liver in (study(1), study(2))]
    )


def look(segmenter, volume, prototypes, **more):
    return find(segmenter, volume, {"liver": prototypes}, window=WINDOW, **more)["liver"]


def test_two_labelled_studies_are_enough_to_find_the_organ_in_a_third(segmenter, prototypes) -> None:
    volume, liver = study(3)
    found = look(segmenter, volume, prototypes)
    assert dice(found.mask, liver) > 0.75
    assert found.confidence > 0.3


def test_a_study_without_the_organ_is_left_empty(segmenter, prototypes) -> None:
    volume, liver = study(3)
    voxels = volume.voxels.copy(order="F")
    voxels[liver] = np.random.default_rng(0).normal(FAT, NOISE, int(liver.sum())).astype(np.int16)
    found = look(segmenter, replace(volume, voxels=voxels), prototypes)
    assert not found.mask.any()
    assert found.confidence == 0


def test_slices_may_lie_in_any_order_and_direction(segmenter, prototypes) -> None:
    volume, _ = study(3)
    affine = volume.affine.copy()
    affine[:3, 3] += (SHAPE[2] - 1) * affine[:3, 2]
    affine[:3, 2] *= -1
    reversed_ = replace(volume, voxels=np.asfortranarray(volume.voxels[:, :, ::-1]), affine=affine)
    one, other = (look(segmenter, each, prototypes) for each in (volume, reversed_))
    assert (one.mask == other.mask[:, :, ::-1]).mean() > 0.99


def test_a_label_without_a_voxel_teaches_nothing(segmenter) -> None:
    volume, liver = study(1)
    assert len(learn(segmenter, volume, np.zeros_like(liver), window=WINDOW)) == 0


def test_what_was_learnt_outlives_a_file(segmenter, prototypes) -> None:
    kept = Prototypes.from_bytes(prototypes.to_bytes())
    assert len(kept) == len(prototypes)
    volume, _ = study(3)
    one, other = (look(segmenter, volume, each) for each in (prototypes, Prototypes.joined([kept, kept])))
    assert agreement(one.mask != 0, other.mask != 0) > 0.95


def test_who_no_longer_waits_gets_nothing(segmenter, prototypes) -> None:
    volume, _ = study(3)
    done: list[int] = []
    with pytest.raises(CancelledError):
        look(
            segmenter,
            volume,
            prototypes,
            progress=lambda slices, _: done.append(slices),
            cancelled=lambda: len(done) == 3,
        )
    assert done == [1, 2, 3]
