"""bfloat16 for image encoders, where the hardware multiplies it faster than float32.

Masks from it are as good (docs/measurements.md), though not the same to the last pixel.
`MEDSA_PRECISION=full` keeps all in float32: the same figures on every machine.
"""

from __future__ import annotations

import os

import torch

from medsa.errors import ConfigurationError


def is_fast(device: torch.device | str) -> bool:
    """Whether encoders are to compute in bfloat16 on `device`: AVX-512 BF16 or AMX, or a GPU that has it.

    Raises `ConfigurationError` when `MEDSA_PRECISION` is neither "auto" nor "full".
    """
    wanted = os.environ.get("MEDSA_PRECISION", "auto")
    if wanted not in ("auto", "full"):
        raise ConfigurationError(f"MEDSA_PRECISION must be auto or full, not '{wanted[:32]}'")
    kind = torch.device(device).type
    if wanted == "full" or kind not in ("cpu", "cuda"):
        return False
    if kind == "cuda":
        return torch.cuda.is_bf16_supported()
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # unknown to older versions
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def autocast(device: torch.device, *, enabled: bool = True) -> torch.autocast:
    """bfloat16 where it `is_fast`, if `enabled`; float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and is_fast(device))
