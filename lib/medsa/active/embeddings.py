"""Embeddings of a frozen encoder that are kept on disk: computed once for all runs of a campaign."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from medsa.files import write_atomically
from medsa.sam import Sam


def remembering(sam: Sam, folder: Path) -> Sam:
    """`sam`, from now on keeping every embedding of its frozen encoder in `folder`, by the image's content.

    Runtime, scores and training then share them, in this process and in the next one. Half precision.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    encode = sam.encode

    def one(image: Tensor) -> Tensor:
        content = image.detach().cpu().contiguous().numpy()
        name = hashlib.sha256(f"{sam.digest} {content.shape}".encode() + content.tobytes()).hexdigest()[:32]
        path = folder / f"{name}.npy"
        if path.is_file():
            kept = np.load(path, allow_pickle=False)
        else:
            kept = encode(image).detach().cpu().numpy().astype(np.float16)
            np.save(buffer := io.BytesIO(), kept, allow_pickle=False)
            write_atomically(path, buffer.getvalue())
        return torch.from_numpy(kept).to(image)

    def remembered(images: Tensor) -> Tensor:
        if images.requires_grad:
            return encode(images)
        return torch.cat([one(image[None]) for image in images])

    sam.__dict__["encode"] = remembered  # of this object alone
    return sam
