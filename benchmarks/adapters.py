"""What adapters cost beside the base: time and memory of encoding, decoding and a training step, by method.

Times are medians of rounds in which all methods take turns; a method for slabs encodes and learns a slab of
its own depth, and its figures are those of one slice. Memory is what the work adds to a fresh process.
`python benchmarks/adapters.py [--backbones NAME ...] [--methods NAME ...] [--rounds N] [--without-memory]`
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling.image_encoder import Attention
from speed import describe_machine

from medsa.adapters.inject import AdaptedSam, adapt
from medsa.adapters.method import read_methods
from medsa.sam import Sam, build_sam, load_sam
from medsa.sam.attention import FoldedAttention

SIDE = 256
ABLATIONS = ("med_sa_plain", "med_sa_sd_add", "med_sa_sd_concat", "med_sa_sd_none")
COMPILED = ("sam", "med_sa_2d", "gl_med_sa", "lora", "decoder_only")
"""Methods that are compiled too, as the runtime does it."""


def main() -> None:
    """Measure and print two tables for each backbone, and the memory of relative positions at 1024."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["lite_medsam", "vit_b"], metavar="NAME")
    known = [method.name for method in read_methods()]
    default = [name for name in known if name not in ABLATIONS]
    parser.add_argument("--methods", nargs="+", default=default, choices=known, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5, help="turns each method takes (default 5)")
    parser.add_argument("--without-memory", action="store_true", help="leave the fresh processes out")
    parser.add_argument("--probe", nargs=3, metavar=("WORK", "BACKBONE", "METHOD"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        print(json.dumps(probe(*args.probe)))
        return
    describe_machine()
    methods = ["sam", *(name for name in args.methods if name != "sam")]
    with tempfile.TemporaryDirectory(prefix="medsa-bench-") as folder:
        os.environ["MEDSA_CACHE"] = folder
        for backbone in args.backbones:
            times = measure(backbone, methods, args.rounds)
            print(f"\n{backbone} at {SIDE}, one image or one slice of a slab; in brackets: beside the base")
            print_times(times, methods)
            if not args.without_memory:
                print_memory(backbone, methods)
        if not args.without_memory:
            stock, folded = (peak("attention", kind, "sam") for kind in ("stock", "folded"))
            print(f"\none global attention of ViT-B at 1024: {stock:.0f} MiB stock, {folded:.0f} MiB here")


def base_model(backbone: str) -> Sam:
    """LiteMedSAM as it is published, others with random weights at 256 pixels; not compiled."""
    if backbone == "lite_medsam":
        return load_sam(backbone, accelerate=False)
    torch.manual_seed(0)
    return build_sam(backbone, image_size=SIDE)


def taught(sam: Sam, name: str) -> AdaptedSam:
    """A method whose adapters have learnt a little, so that nothing is multiplied by zeros."""
    model = adapt(sam, name)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, _, parameter in model.trained_parameters():
            parameter.add_(1e-3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def images(model: AdaptedSam) -> torch.Tensor:
    """One image (1, 3, S, S), or a slab (1, D, 3, S, S) for a method that wants one."""
    picture = torch.rand(model.method.depth, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    return picture[None] if model.method.depth > 1 else picture


def box(count: int) -> torch.Tensor:
    return torch.tensor([[60.0, 50.0, 190.0, 200.0]]).expand(count, -1)


def encode(model: AdaptedSam) -> Callable[[], object]:
    """Embeds an image or a slab."""
    picture = images(model)
    return lambda: _without_gradient(lambda: model.encode(picture))


def decode(model: AdaptedSam) -> Callable[[], object]:
    """One box, one mask, on an embedding that is there; mended where the method does that."""
    embedding = torch.randn(1, model.config.decoder.width, *[model.embedding_size] * 2)
    picture = images(model).flatten(0, -4)[:1]
    return lambda: _without_gradient(lambda: model.refine(model.decode(embedding, boxes=box(1))[0], picture))


def step(model: AdaptedSam) -> Callable[[], object]:
    """A training step with a box for each slice: forward, backward, AdamW."""
    learning = [parameter for _, _, parameter in model.trained_parameters()]
    optimiser = torch.optim.AdamW(learning, lr=1e-5)
    picture, depth = images(model), model.method.depth
    flat = picture.flatten(0, 1) if depth > 1 else picture
    model.train()

    def run() -> None:
        if model.method.head is not None:
            logits = model.segment(flat)
        else:
            embedding = model.encode(picture).flatten(0, 1) if depth > 1 else model.encode(picture)
            logits = model.refine(model.decode(embedding, boxes=box(depth))[0], flat)
        optimiser.zero_grad(set_to_none=True)
        logits.sigmoid().mean().backward()
        optimiser.step()

    return run


def _without_gradient(work: Callable[[], object]) -> object:
    with torch.inference_mode():
        return work()


WORK: dict[str, Callable[[AdaptedSam], Callable[[], object]]] = {
    "encode": encode,
    "decode": decode,
    "step": step,
}
SLAB = ("encode", "step")
"""Work on a whole slab, whose figures are divided by its depth."""


def works(model: AdaptedSam) -> list[str]:
    """What can be measured of a method: the base does not learn, MA-SAM's own head takes no prompts."""
    left_out = {"step"} if model.method.name == "sam" else {"decode"} if model.method.head else set()
    return [name for name in WORK if name not in left_out]


def measure(backbone: str, methods: Sequence[str], rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds by work and method; "compiled encode" and "compiled decode" as the runtime has them."""
    sam = base_model(backbone)
    found: dict[str, dict[str, float]] = {}
    jobs = {
        work: {
            name: (WORK[work](model), model.method.depth if work in SLAB else 1)
            for name in methods
            if work in works(model := taught(sam, name))
        }
        for work in WORK
    }
    for work, members in jobs.items():
        found[work] = take_turns(members, rounds)
    jobs.clear()
    sam.accelerate()
    compiled = {name: taught(sam, name) for name in methods if name in COMPILED}
    for model in compiled.values():
        model.accelerate()
    for work in ("encode", "decode"):
        members = {name: (WORK[work](model), 1) for name, model in compiled.items()}
        found[f"compiled {work}"] = take_turns(members, 3 * rounds)
    return found


def take_turns(jobs: dict[str, tuple[Callable[[], object], int]], rounds: int) -> dict[str, float]:
    """Median seconds of each job, divided by its second part; one unmeasured turn, then `rounds` in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, (work, parts) in jobs.items():
            started = time.perf_counter()
            work()
            if turn:
                seconds[name].append((time.perf_counter() - started) / parts)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_times(times: dict[str, dict[str, float]], methods: Sequence[str]) -> None:
    """Milliseconds, and the ratio to the base; a training step beside full fine-tuning."""
    print(f"{'':16}" + "".join(f"{name:>19}" for name in times))
    for method in methods:
        cells = []
        for members in times.values():
            base = members.get("sam") or members.get("full")
            value = members.get(method)
            ratio = "" if base is None or value is None else f"({value / base:5.2f})"
            cells.append(" " * 19 if value is None else f"{1e3 * value:9.1f} ms{ratio:>7}")
        print(f"{method:16}{''.join(cells)}", flush=True)


def print_memory(backbone: str, methods: Sequence[str]) -> None:
    """MiB that encoding an image or slab and a training step on it add to a fresh process."""
    print(f"{'peak memory':16}{'encode':>19}{'step':>19}")
    sam = build_on_meta(backbone)
    for method in methods:
        model = adapt(sam, method)
        depth = f" of {model.method.depth}" if model.method.depth > 1 else ""
        cells = [
            f"{peak(work, backbone, method):9.0f} MiB{depth:>6}" if work in works(model) else ""
            for work in SLAB
        ]
        print(f"{method:16}{cells[0]:>19}{cells[1]:>19}", flush=True)


def build_on_meta(backbone: str) -> Sam:
    with torch.device("meta"):
        return build_sam(backbone)


def peak(work: str, backbone: str, method: str) -> float:
    """MiB that `work` adds to a process of its own, at its peak."""
    command = [sys.executable, __file__, "--probe", work, backbone, method]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def probe(work: str, backbone: str, method: str) -> float:
    """In the fresh process: MiB between what is there before the work and its peak."""
    run: Callable[[], Any]
    if work == "attention":
        kind = {"stock": Attention, "folded": FoldedAttention}[backbone]
        attention = kind(768, 12, use_rel_pos=True, input_size=(64, 64)).eval()
        picture = torch.randn(1, 64, 64, 768)

        def run() -> object:
            return _without_gradient(lambda: attention(picture))
    else:
        run = WORK[work](taught(base_model(backbone), method))
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    run()
    return memory("VmHWM") - before


def memory(field: str) -> float:
    """MiB of this process as /proc says."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(field))) / 1024


if __name__ == "__main__":
    main()
