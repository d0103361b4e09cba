"""What attention costs while it learns: torch's fused kernel beside `attend`, forward and backward, in turns.

The shapes are those of a slab of five slices in LiteMedSAM at 128 pixels, and of depth attention,
without a bias.
`python benchmarks/attention.py [--rounds N]`
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from speed import describe_machine
from torch import Tensor
from torch.nn import functional as F

from medsa.sam.attention import attend

SHAPES = ((500, 4, 49, 32), (45, 5, 196, 32), (125, 10, 49, 32), (1024, 4, 5, 32))
"""(windows, heads, tokens, width)"""
Attention = Callable[..., Tensor]


def main() -> None:
    """Measure and print a line for each shape and precision."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="turns each of the two takes (default 9)")
    rounds = parser.parse_args().rounds
    describe_machine()
    print("windows, heads, tokens, width: fused, attend, fused / attend")
    for dtype in (torch.bfloat16, torch.float32):
        for shape in SHAPES:
            q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
            times: dict[str, list[float]] = {"fused": [], "attend": []}
            turns: list[tuple[str, Attention]] = [
                ("fused", F.scaled_dot_product_attention),
                ("attend", attend),
            ]
            for n in range(rounds + 1):
                for name, attention in turns if n % 2 else turns[::-1]:
                    times[name].append(seconds(attention, q, k, v))
            fused, ours = (1e3 * statistics.median(found[1:]) for found in times.values())
            print(f"{dtype} {shape}: {fused:.1f} ms, {ours:.1f} ms, {fused / ours:.2f}")


def seconds(attention: Attention, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Of one pass forward and backward."""
    started = time.perf_counter()
    attention(q, k, v).sum().backward()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
