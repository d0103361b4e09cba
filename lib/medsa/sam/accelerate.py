"""Speed on a CPU: modules compiled by OpenVINO, once, and kept on disk for the next start."""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from medsa.config import cache_dir
from medsa.sam.precision import is_fast

log = logging.getLogger(__name__)

Precision = Literal["f32", "bf16"]

KEEP = 32  # compiled models in the cache folder: up to four a model
LARGEST = 1 << 30  # bytes of weights: compiling more than that needs several times as much memory


class Compiled:
    """A compiled module: called with float32 CPU tensors, gives its outputs as tensors; thread-safe.

    Use it only while `fits(module)`: as soon as a weight was changed or replaced, a block wrapped or a hook
    set, it computes something else than the module does.
    """

    def __init__(self, module: nn.Module, infer: Callable[[list[np.ndarray]], Iterable[np.ndarray]]) -> None:
        self._state = [(weakref.ref(part), mark) for part, mark in state_of(module)]
        self._infer = infer
        self._lock = threading.Lock()

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        arrays = [value.detach().contiguous().numpy() for value in inputs]
        with self._lock:
            return [torch.from_numpy(value) for value in self._infer(arrays)]

    def fits(self, module: nn.Module) -> bool:
        """Whether `module` is still in the state in which it was compiled."""
        now = state_of(module)
        return len(now) == len(self._state) and all(
            known() is part and before == mark
            for (known, before), (part, mark) in zip(self._state, now, strict=True)
        )


def compile_module(
    module: nn.Module,
    example: Sequence[Tensor],
    shapes: Sequence[Sequence[int]],
    watched: nn.Module | None = None,
    precision: Precision = "f32",
) -> Compiled | None:
    """`module` compiled for inputs of `shapes` (-1: any length), or None when that is not possible here.

    `example` are inputs to trace it with. `watched` is the module whose state decides whether the result
    still fits (default: `module`). It computes in `precision` inside, and takes and gives float32. What was
    compiled before from the same weights, code and versions for this kind of CPU comes from the cache folder.
    """
    if sum(value.nbytes for value in module.parameters()) > LARGEST:
        log.info("%s is too large to be compiled: computing with torch alone", type(module).__name__)
        return None
    try:
        core = _core()
    except ImportError:
        log.info("openvino is not installed: computing with torch alone")
        return None
    config = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    key, compiled = _key(module, shapes, precision), None
    if key and (blob := _read(key)) is not None:
        try:
            compiled = core.import_model(blob, "CPU", config)
        except RuntimeError:
            log.warning("the compiled model %s cannot be used; it is made again", key)
    if compiled is None:
        log.info("preparing %s for this CPU (once)", type(module).__name__)
        try:
            compiled = core.compile_model(_convert(module, example, shapes), "CPU", config)
        except RuntimeError as error:
            log.warning("%s runs without acceleration: %s", type(module).__name__, str(error).splitlines()[0])
            return None
        if key:
            _write(key, compiled.export_model().getvalue())
    request = compiled.create_infer_request()
    return Compiled(watched or module, lambda inputs: request.infer(inputs, share_inputs=True).values())


def compile_encoder(encoder: nn.Module, image_size: int) -> dict[str, Compiled]:
    """`{"encoder": ...}` for images (1, 3, S, S), S = `image_size`; empty where it is not possible.

    It computes in bfloat16 where that is fast (`medsa.sam.precision`).
    """
    image = torch.zeros(1, 3, image_size, image_size)
    precision: Precision = "bf16" if is_fast("cpu") else "f32"
    compiled = compile_module(encoder, [image], [image.shape], precision=precision)
    return {} if compiled is None else {"encoder": compiled}


def compile_decoders(
    fold: Callable[[bool], nn.Module], position: Tensor, watched: nn.Module
) -> dict[str, Compiled]:
    """`{"mask": ..., "masks": ...}` of `fold(multimask)`, for any number of prompts on one image.

    `position` (1, C, h, w) tells the grid. A decoder whose `fold` raises `TypeError` is left out.
    """
    _, width, side, _ = position.shape
    prompts = [torch.zeros(1, width, side, side), torch.zeros(1, width, 1, 1), torch.zeros(2, 2, width)]
    shapes = [[1, width, side, side], [-1, width, -1, -1], [-1, -1, width]]
    found = {}
    for name, multimask in (("mask", False), ("masks", True)):
        with suppress(TypeError):
            found[name] = compile_module(fold(multimask), prompts, shapes, watched=watched)
    return {name: compiled for name, compiled in found.items() if compiled is not None}


def compile_refiner(refiner: nn.Module, cells: int, told: int) -> dict[str, Compiled]:
    """`{"refiner": ...}` for any number of logits (N, 1, c, c) and their pictures (N, 3, c, c), c = `cells`.

    As `compile_encoder`; the third input, (N, `told`), is what it is told.
    """
    logits, pictures = torch.zeros(2, 1, cells, cells), torch.zeros(2, 3, cells, cells)
    shapes = [[-1, 1, cells, cells], [-1, 3, cells, cells], [-1, told]]
    example = [logits, pictures, torch.zeros(2, told)]
    precision: Precision = "bf16" if is_fast("cpu") else "f32"
    compiled = compile_module(refiner, example, shapes, precision=precision)
    return {} if compiled is None else {"refiner": compiled}


def fitting(compiled: Compiled | None, module: nn.Module, value: Tensor) -> Compiled | None:
    """`compiled` where it can be used instead of `module` for an input such as `value`, else None."""
    if compiled is None or value.device.type != "cpu" or value.dtype != torch.float32:
        return None
    return compiled if compiled.fits(module) else None


def needs_gradient(modules: Sequence[nn.Module], *inputs: Tensor) -> bool:
    """Whether anything here is to learn."""
    parameters = (parameter for module in modules for parameter in module.parameters())
    return torch.is_grad_enabled() and any(value.requires_grad for value in (*inputs, *parameters))


def _convert(module: nn.Module, example: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> Any:
    """The OpenVINO model of a traced module; what `openvino.convert_model` does, in a quarter of its time."""
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.no_grad(), warnings.catch_warnings():
        # OpenVINO reads TorchScript, which torch will give up one day; what a trace takes as constant, is.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(module, tuple(example), check_trace=False)
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced, example_input=tuple(example))
    loaded = frontend.load(decoder)
    model = frontend.convert(loaded)
    model.reshape(dict(enumerate(map(list, shapes))))
    return model


def state_of(module: nn.Module) -> list[tuple[object, tuple[int, int]]]:
    """What a compiled copy depends on: the submodules and their hooks, the tensors' places and versions."""
    parts: list[tuple[object, tuple[int, int]]] = [
        (part, (len(part._forward_hooks), len(part._forward_pre_hooks))) for part in module.modules()
    ]
    for value in (*module.parameters(), *module.buffers()):
        parts.append((value, (value.data_ptr(), 0 if value.is_inference() else value._version)))
    return parts


def _key(module: nn.Module, shapes: Sequence[Sequence[int]], precision: Precision) -> str | None:
    """Hash of all that decides what is compiled: weights, code, settings, shapes, precision, versions, CPU.

    None when there is code that cannot be hashed: hooks, classes without a file.
    """
    parts = list(module.modules())
    if any(part._forward_hooks or part._forward_pre_hooks for part in parts):
        return None
    digest = hashlib.sha256()
    try:
        for source in sorted({inspect.getfile(type(part)) for part in parts}):
            digest.update(Path(source).read_bytes())
    except (TypeError, OSError):
        return None
    core = _core()
    cpu = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    versions = [torch.__version__, core.get_versions("CPU")["CPU"].build_number]
    digest.update(repr([precision, versions, cpu, [list(shape) for shape in shapes], str(module)]).encode())
    for part in parts:
        settings = {k: v for k, v in vars(part).items() if isinstance(v, (bool, int, float, str, tuple))}
        digest.update(repr(settings).encode())
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.detach().contiguous().numpy().data)
    return digest.hexdigest()[:32]


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def _path(key: str) -> Path:
    folder = cache_dir() / "compiled"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{key}.blob"


def _read(key: str) -> bytes | None:
    """The compiled model of this key, None when it is not there or damaged."""
    path = _path(key)
    try:
        content = path.read_bytes()
        path.touch()
    except OSError:
        return None
    digest, blob = content[:32], content[32:]
    return blob if hashlib.sha256(blob).digest() == digest else None


def _write(key: str, blob: bytes) -> None:
    """Keep a compiled model atomically, and only the `KEEP` most recently used ones."""
    path = _path(key)
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            file.write(hashlib.sha256(blob).digest())
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
    except OSError as error:
        log.warning("the compiled model cannot be kept: %s", error)
        return
    kept = sorted(path.parent.glob("*.blob"), key=lambda blob: blob.stat().st_mtime, reverse=True)
    for old in kept[KEEP:]:
        old.unlink(missing_ok=True)
