"""How large an image may be: asked from its header, before anything is allocated."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

from medsa.errors import TooLargeError

_SHARE = 0.5
"""Part of the free memory that one image may take; the rest is for the model and for other images."""


def available_memory() -> int:
    """Bytes that may still be allocated: what the kernel calls available, or less under a cgroup limit."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text("ascii").splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
        group = Path("/sys/fs/cgroup")
        limit = (group / "memory.max").read_text("ascii").strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text("ascii")))
    except (OSError, KeyError, ValueError):
        pass
    return max(free, 0)


def check_memory(shape: Sequence[int], bytes_per_voxel: int) -> None:
    """Raise `TooLargeError` when voxels of `shape` would take more than half of the memory that is free."""
    need, allowed = math.prod(int(n) for n in shape) * bytes_per_voxel, int(available_memory() * _SHARE)
    if need > allowed:
        size = " x ".join(str(n) for n in shape)
        raise TooLargeError(
            f"the image of {size} voxels takes {need / 2**20:,.0f} MiB, and {allowed / 2**20:,.0f} MiB may "
            "be used: crop or resample it, or use a machine with more memory"
        )
