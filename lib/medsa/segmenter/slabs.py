"""Slabs: methods with depth see some neighbouring slices at once (Med-SA, SD-Trans; MA-SAM, section 2.3).

A volume is cut into overlapping slabs, always the same ones, so that clicks and labels share their
embeddings; a slice that lies in several is seen as their mean, weighed by how far inside it lies.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Slab:
    """Slices `first` to `first + length - 1` of a volume."""

    first: int
    length: int

    def __contains__(self, k: int) -> bool:
        return self.first <= k < self.first + self.length

    @property
    def slices(self) -> range:
        """Its slices."""
        return range(self.first, self.first + self.length)

    def weight(self, k: int) -> int:
        """How far slice k lies inside: 1 for the slab's first and last."""
        return 1 + min(k - self.first, self.first + self.length - 1 - k)


def slabs_of(slices: int, depth: int) -> list[Slab]:
    """The slabs of `depth` slices of a volume of `slices`: about half of each overlaps the next one.

    The last one ends with the volume; a volume thinner than a slab is one thin slab.
    """
    if slices <= depth:
        return [Slab(0, slices)]
    return [Slab(first, depth) for first in (*range(0, slices - depth, (depth + 1) // 2), slices - depth)]


def slabs_with(k: int, slices: int, depth: int) -> list[tuple[Slab, float]]:
    """The slabs that hold slice k of a volume of `slices`, and their parts in it, which sum to 1."""
    found = [slab for slab in slabs_of(slices, depth) if k in slab]
    total = sum(slab.weight(k) for slab in found)
    return [(slab, slab.weight(k) / total) for slab in found]
