"""How well chosen studies stand for all: distances between looks, k-centre and typicality.

k-centre: Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach", ICLR
2018. Typicality: Hacohen et al., "Active learning on a budget", ICML 2022: with no label at all the study
that lies most densely among the others is worth most.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Looks = NDArray[np.float32]
Floats = NDArray[np.float64]

PARTS = 32
"""Principal components of the looks that are compared."""
NEIGHBOURS = 20
SAMPLE = 1000
"""Studies that typicality looks for neighbours among, at most."""


def comparable(looks: Looks) -> Looks:
    """(N, D) -> (N, at most PARTS): the directions of the looks, seen from the pool's mean."""
    centred = looks.astype(np.float64) - looks.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    reduced = centred @ vectors[:, ::-1][:, :PARTS]
    lengths = np.linalg.norm(reduced, axis=1, keepdims=True)
    return (reduced / np.maximum(lengths, 1e-9)).astype(np.float32)


def distances(looks: Looks, others: Looks) -> Floats:
    """(N, M) Euclidean, to 1e-7: in single precision equals would lie as much as 1e-3 apart."""
    return np.sqrt(np.maximum(_squared(looks, others), 0))


def nearest(looks: Looks, others: Looks) -> tuple[Floats, NDArray[np.intp]]:
    """(N,) the distance to the nearest of `others` (M, D), and which it is; infinite and -1 without any."""
    if not len(others):
        return np.full(len(looks), np.inf), np.full(len(looks), -1, np.intp)
    squared = _squared(looks, others)
    which = squared.argmin(axis=1)
    return np.sqrt(np.maximum(squared[np.arange(len(looks)), which], 0)), which


def _squared(looks: Looks, others: Looks) -> Floats:
    """(N, M) the squares of the distances; rounding may leave them a little below 0."""
    looks, others = looks.astype(np.float64), others.astype(np.float64)
    squared = -2 * looks @ others.T
    squared += (others**2).sum(axis=1)
    squared += (looks**2).sum(axis=1)[:, None]
    return squared


def typicality(looks: Looks) -> Floats:
    """(N,) the inverse of the mean distance to the nearest neighbours, among a sample of a large pool."""
    if len(looks) < 2:
        return np.ones(len(looks))
    chosen = np.random.default_rng(0).permutation(len(looks))[:SAMPLE]
    found = distances(looks, looks[chosen])
    found[chosen, np.arange(len(chosen))] = np.inf
    count = min(NEIGHBOURS, len(chosen) - 1)
    near = np.partition(found, count - 1, axis=1)[:, :count]
    return 1 / np.maximum(near.mean(axis=1), 1e-6)
