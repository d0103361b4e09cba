"""What OHIF, 3D Slicer and MONAI Label's own client send with a click, turned into a `Prompt` in voxels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsa.data.labels import LabelSet
from medsa.data.window import check_window
from medsa.errors import BadInputError
from medsa.prompts import Prompt
from medsa.segmenter.finish import Finish

ENDINGS = (".nrrd", ".nii.gz", ".nii")
MOST_POINTS = 1000

_PROMPTS = {"foreground", "background", "roi", "box", "slice", "start"}
_FINISH = {"largest_component", "fill_holes", "smallest"}
_USED = (
    _PROMPTS
    | _FINISH
    | {
        "label",
        "window",
        "adapter",
        "undo",
        "redo",
        "reset_state",
        "result_extension",
        "client_id",
        "label_info",
        "crop",
        "largest_cc",
        "zoom",
    }
)
_IGNORED = {"result_dtype", "result_compress", "restore_label_idx", "logging", "device"}
"""Sent by clients, or known from MONAI Label, and without meaning here."""


@dataclass(frozen=True)
class Click:
    """One request for a mask.

    `k`: the slice a 2D model works on, None for a volume (and for an undo or a redo, which name none).
    `label`: "" when the client names none. `adapter`: the version to ask, "" for the served one.
    `label_info`: names for a DICOM SEG answer, as MONAI Label's clients send them. `crop`: answer with the
    slices that hold the object alone. `start`: the mask to correct, "" to begin anew. `finish`: what is done
    to the mask in the end. `zoom`: look closer at what a small box is around.
    """

    prompt: Prompt
    dimension: int
    k: int | None
    label: str = ""
    window: str = "auto"
    adapter: str = ""
    undo: bool = False
    redo: bool = False
    reset: bool = False
    extension: str = ".nrrd"
    client_id: str = ""
    label_info: tuple[str, ...] = ()
    crop: bool = False
    start: str = ""
    finish: Finish = field(default_factory=Finish)
    zoom: bool = True


def read_params(text: str | None) -> dict[str, Any]:
    """The JSON object of a form's `params`; raises `BadInputError` when it is none."""
    try:
        params = json.loads(text or "{}")
    except (ValueError, RecursionError):
        raise BadInputError("params must be a JSON object; what was sent cannot be read as JSON") from None
    if not isinstance(params, dict):
        raise BadInputError('params must be a JSON object, such as {"foreground": [[10, 20, 5]]}')
    return params


def read_click(
    params: Mapping[str, Any],
    shape: Sequence[int],
    dimension: int,
    labels: LabelSet,
    window: str = "auto",
) -> Click:
    """A click on an image of `shape` (I, J, K) for a model of `dimension` 2 or 3.

    Points are voxel `(i, j, k)`; lists may come as strings, and as `(i, j)` on a single slice. `roi` is
    Slicer's `[i, i, j, j, k, k]` with pairs in any order: without area it means that none was drawn. In 2D
    only the prompts on one slice count: `slice` where given, else that of the last foreground point. `window`
    is the server's own choice, for clients that send none. Raises `BadInputError` for what cannot be used,
    unknown parameters and labels among it. `largest_cc` is what MONAI Label calls `largest_component`.
    """
    unknown = sorted(set(params) - _USED - _IGNORED)
    if unknown:
        shown = ", ".join(name[:40] for name in unknown[:5])
        raise BadInputError(f"unknown parameter {shown}; this server knows: {', '.join(sorted(_USED))}")
    k = _slice(params.get("slice"), shape)
    flat = 0 if shape[2] == 1 else k
    foreground = _points(params.get("foreground"), "foreground", flat)
    background = _points(params.get("background"), "background", flat)
    box = _box(params.get("box"), flat)
    box = _roi(params.get("roi"), shape) if box is None else box
    undo, redo = (_flag(params.get(name), name) for name in ("undo", "redo"))
    if undo and redo:
        raise BadInputError("a request takes a click back or makes it again, not both")
    if dimension == 2:
        if box is not None and Prompt(box=box).across:
            raise BadInputError("the box crosses the slices: draw it on one, or ask a model for volumes")
        k = _slice_of(foreground, background, box) if k is None else k
        foreground, background, box = _on_slice(foreground, background, box, k)
    start = _text(params.get("start"), "start")
    prompt = Prompt(foreground, background, box)
    if prompt.empty and not (undo or redo) and not (start and (dimension == 3 or k is not None)):
        where = f" on slice {k}" if dimension == 2 and k is not None else ""
        raise BadInputError(
            f"there is no foreground point and no box{where}: click on the object, or draw a box"
        )
    prompt.check_inside(shape)
    if dimension == 2 and k is not None and not 0 <= k < shape[2]:
        raise BadInputError(f"slice {k} is not in the image, which has slices 0 to {shape[2] - 1}")
    chosen = _text(params.get("window"), "window") or window
    check_window(chosen)
    return Click(
        prompt=prompt,
        dimension=dimension,
        k=k if dimension == 2 else None,
        label=_label(params.get("label"), labels),
        window=chosen,
        adapter=_text(params.get("adapter"), "adapter"),
        undo=undo,
        redo=redo,
        reset=_flag(params.get("reset_state"), "reset_state"),
        extension=_extension(params.get("result_extension")),
        client_id=_text(params.get("client_id"), "client_id"),
        label_info=_label_info(params.get("label_info"), labels),
        crop=_flag(params.get("crop"), "crop"),
        start=start,
        finish=_finish(params),
        zoom=params.get("zoom") is None or _flag(params["zoom"], "zoom"),
    )


def read_automatic(
    params: Mapping[str, Any], labels: LabelSet, window: str = "auto"
) -> tuple[Click, tuple[str, ...]]:
    """What a client wants of the automatic model, and the labels it names: none for all that can be found.

    `label` is a name or a list of names. Prompts are refused: raises `BadInputError` for them, and for what
    `read_click` refuses.
    """
    unknown = sorted(set(params) - _USED - _IGNORED)
    prompts = sorted(name for name in _PROMPTS & set(params) if params[name] not in (None, "", [], [[]]))
    if unknown or prompts:
        shown = ", ".join(name[:40] for name in (unknown or prompts)[:5])
        raise BadInputError(
            f"the automatic model does not know the parameter {shown}; it takes label, window and adapter"
        )
    wanted = _value(params["label"], "label") if _is_list(params.get("label")) else params.get("label")
    names = [_label(name, labels) for name in (wanted if isinstance(wanted, list) else [wanted])]
    chosen = _text(params.get("window"), "window") or window
    check_window(chosen)
    click = Click(
        prompt=Prompt(),
        dimension=3,
        k=None,
        window=chosen,
        adapter=_text(params.get("adapter"), "adapter"),
        extension=_extension(params.get("result_extension")),
        client_id=_text(params.get("client_id"), "client_id"),
        crop=_flag(params.get("crop"), "crop"),
    )
    return click, tuple(dict.fromkeys(name for name in names if name))


def _is_list(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith("[")


def _value(value: Any, name: str) -> Any:
    """A value that some clients send as the text of its JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        raise BadInputError(f"{name} cannot be read as JSON") from None


def _numbers(value: Any, name: str) -> NDArray[np.float64]:
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise BadInputError(f"{name} must hold numbers, in lists of equal length") from None


def _points(value: Any, name: str, flat: int | None) -> NDArray[np.float64]:
    value = _value(value, name)
    points = _numbers([] if value is None else value, name)
    if points.size == 0:
        return np.empty((0, 3))
    if points.ndim == 1 and points.size in (2, 3):
        points = points[None]
    if points.ndim == 2 and points.shape[1] == 2 and flat is not None:
        points = np.column_stack([points, np.full(len(points), flat)])
    if points.ndim != 2 or points.shape[1] != 3:
        raise BadInputError(f"{name} must be a list of points [i, j, k] (column, row, slice)")
    if len(points) > MOST_POINTS:
        raise BadInputError(f"{len(points)} {name} points are too many; at most {MOST_POINTS} are taken")
    return points


def _box(value: Any, flat: int | None) -> NDArray[np.float64] | None:
    value = _value(value, "box")
    if value is None or value == []:
        return None
    corners = _numbers(value, "box")
    if corners.shape == (4,) and flat is not None:
        corners = np.array([[corners[0], corners[1], flat], [corners[2], corners[3], flat]])
    if corners.shape != (2, 3):
        raise BadInputError("box must be two corners, [[i, j, k], [i, j, k]]")
    return Prompt(box=corners).box


def _roi(value: Any, shape: Sequence[int]) -> NDArray[np.float64] | None:
    value = _value(value, "roi")
    if value is None or value == []:
        return None
    pairs = _numbers(value, "roi")
    if pairs.shape != (6,) or not np.isfinite(pairs).all():
        raise BadInputError("roi must be six numbers, [i, i, j, j, k, k]")
    corners = np.sort(pairs.reshape(3, 2), axis=1).T
    if (corners[1, :2] - corners[0, :2] <= 0).any():
        return None
    last = np.asarray(shape[:3], dtype=np.float64) - 1
    if (corners[1] < 0).any() or (corners[0] > last).any():
        raise BadInputError(
            "the region of interest lies outside the image: move it over the object, or delete it"
        )
    return Prompt(box=np.clip(corners, 0, last)).box


def _slice(value: Any, shape: Sequence[int]) -> int | None:
    value = _value(value, "slice")
    if value is None or isinstance(value, list):
        return None
    number = _numbers(value, "slice")
    if number.ndim or not np.isfinite(number) or not 0 <= np.rint(number) < shape[2]:
        raise BadInputError(f"slice must be a number from 0 to {shape[2] - 1}")
    return int(np.rint(number))


def _slice_of(foreground: NDArray, background: NDArray, box: NDArray | None) -> int | None:
    for points in (foreground, None if box is None else box.mean(axis=0, keepdims=True), background):
        if points is not None and len(points) and np.isfinite(points[-1, 2]):
            return int(np.clip(np.rint(points[-1, 2]), -1, 2**31))
    return None


def _on_slice(
    foreground: NDArray, background: NDArray, box: NDArray | None, k: int | None
) -> tuple[NDArray, NDArray, NDArray | None]:
    if k is None:
        return foreground, background, box
    if box is not None:
        box = np.column_stack([box[:, :2], [k, k]]) if box[0, 2] - 0.5 <= k <= box[1, 2] + 0.5 else None
    keep = [
        points[~np.isfinite(points[:, 2]) | (np.rint(points[:, 2]) == k)]
        for points in (foreground, background)
    ]
    return keep[0], keep[1], box


def _flag(value: Any, name: str) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    if value in (0, 1):
        return value == 1
    if isinstance(value, str) and value.lower() in ("true", "false", ""):
        return value.lower() == "true"
    raise BadInputError(f"{name} must be true or false")


def _text(value: Any, name: str) -> str:
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > 256:
        raise BadInputError(f"{name} must be a short text")
    return value.strip()


def _finish(params: Mapping[str, Any]) -> Finish:
    largest = [_flag(params.get(name), name) for name in ("largest_component", "largest_cc")]
    smallest = _value(params.get("smallest"), "smallest")
    size = _numbers(0.0 if smallest is None else smallest, "smallest")
    if size.ndim:
        raise BadInputError("smallest must be one number, in cubic millimetres")
    return Finish(any(largest), _flag(params.get("fill_holes"), "fill_holes"), float(size))


def _label(value: Any, labels: LabelSet) -> str:
    name = _text(value, "label")
    return labels.by_name(name).name if name else ""


def _label_info(value: Any, labels: LabelSet) -> tuple[str, ...]:
    value = _value(value, "label_info")
    entries = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(entry, dict) for entry in entries):
        raise BadInputError('label_info must be a list such as [{"name": "liver", "idx": 1}]')
    return tuple(_label(entry.get("name"), labels) for entry in entries if entry.get("name"))


def _extension(value: Any) -> str:
    extension = _text(value, "result_extension").lower() or ".nrrd"
    if extension not in ENDINGS:
        raise BadInputError(f"results are written as {', '.join(ENDINGS)}, not as '{extension}'")
    return extension
