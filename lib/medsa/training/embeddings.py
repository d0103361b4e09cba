"""Embeddings of a frozen encoder, computed once and kept on disk for the time of a run."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medsa.files import write_atomically
from medsa.sam import Sam
from medsa.training.items import Picture


class EmbeddingStore:
    """One float16 file an embedding in `folder` (0700, files 0600), named by what it was computed from.

    `get` reads it memory-mapped, or computes it. Pictures must be single slices.
    """

    def __init__(self, sam: Sam, folder: Path) -> None:
        self.sam, self.folder = sam, folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def get(self, picture: Picture) -> Tensor:
        """(1, C, h, w) float16 on the CPU."""
        path = self._path(picture)
        if not path.is_file():
            image = picture.image(self.sam.config).to(self.sam.dense_pe)
            with torch.no_grad():
                embedding = self.sam.encode(image).cpu().numpy().astype(np.float16)
            np.save(buffer := io.BytesIO(), embedding, allow_pickle=False)
            write_atomically(path, buffer.getvalue())
        return torch.from_numpy(np.array(np.load(path, mmap_mode="r", allow_pickle=False)))

    def remove(self) -> None:
        """Delete all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, picture: Picture) -> Path:
        source = f"{self.sam.digest} {self.sam.image_size} {self.sam.config.name} {picture.digest}"
        return self.folder / f"{hashlib.sha256(source.encode()).hexdigest()[:32]}.npy"
