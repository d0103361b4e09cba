"""Adapter versions on disk, a folder with `adapter.safetensors` and `card.json`, and a bank of several."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

import medsa
from medsa.adapters.inject import AdaptedSam, adapt
from medsa.adapters.method import Method
from medsa.config import explain
from medsa.errors import AdapterError, NotFoundError
from medsa.files import write_atomically
from medsa.sam import Sam
from medsa.sam.backbone import PromptKind

TENSORS, CARD = "adapter.safetensors", "card.json"
MOST_LOADED = 8  # versions a bank keeps in memory
SHIPPED, STARTER = Path(__file__).resolve().parents[1] / "shipped", "starter"


class Card(BaseModel):
    """All that is needed to serve an adapter version and to train it again; no patient is named in it.

    `trained_prompts` are the prompts it was taught (None: those of its backbone), and so asked with, and
    `multimask` whether a single click was taught to give three masks to choose from, as SAM does. `studies`
    maps "training" and "validation" to hashed study ids, `metrics` whatever was measured before and after,
    `made_by` is the command that made it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method
    backbone: str
    backbone_digest: str
    image_size: int
    trained_prompts: tuple[PromptKind, ...] | None = None
    multimask: bool = True
    labels: tuple[str, ...] = ()
    studies: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = Field(default_factory=dict)
    parent: str | None = None
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    medsa_version: str = medsa.__version__
    made_by: str = ""


def save_adapter(model: AdaptedSam, folder: Path, *, half: bool = False, **card: object) -> Card:
    """Write what a model has learnt or carries, and its card, to `folder` (made if missing).

    More fields as in `Card`. `half` stores float16. The card is written last: a
    folder without one is not a version.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    base = model.base
    written = Card(
        method=model.method,
        backbone=base.config.name,
        backbone_digest=base.digest,
        image_size=base.image_size,
        **{"trained_prompts": model.trained_prompts, "multimask": model.multimask, **card},
    )
    tensors = {name: tensor.half() if half else tensor for name, tensor in _kept(model).items()}
    write_atomically(folder / TENSORS, save(tensors))
    write_atomically(folder / CARD, written.model_dump_json(indent=2).encode())
    return written


def read_card(folder: Path) -> Card:
    """The card of an adapter version; raises `NotFoundError` or `AdapterError`."""
    path = folder / CARD
    if not path.is_file():
        raise NotFoundError(f"{folder} is no adapter version: it has no {CARD}")
    try:
        return Card.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise AdapterError(f"{CARD} of the adapter {folder.name} is damaged: {explain(error)}") from None


def load_adapter(sam: Sam, folder: Path) -> AdaptedSam:
    """The adapted model of a version on `sam`, in eval mode.

    Raises `AdapterError` when the version was made for another backbone, other weights or, unless it takes
    prompts and leaves the encoder as it is, another input size, or when a tensor is missing, unknown, damaged
    or of another shape: each is named.
    """
    card = read_card(folder)

    def same(what: str, theirs: object, ours: object) -> None:
        if theirs != ours:
            raise AdapterError(f"the adapter {folder.name} was made for another {what}: {theirs}, not {ours}")

    same("backbone", card.backbone, sam.config.name)
    same("file of the backbone's weights", card.backbone_digest, sam.digest)
    try:
        tensors = load((folder / TENSORS).read_bytes())
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{TENSORS} of the adapter {folder.name} cannot be read: {error}") from None
    model = adapt(sam, card.method).to(sam.dense_pe.device).eval()
    if model.changes_encoder or not card.method.prompts:
        same("input size", card.image_size, sam.image_size)
    _check(tensors, _kept(model), folder)
    model.adapters.load_state_dict(tensors, strict=False)
    if card.trained_prompts is not None:
        model.trained_prompts = card.trained_prompts
    model.multimask = card.multimask
    return model


def adapter_folders(folder: Path) -> dict[str, Path]:
    """The adapter versions of a folder by name: the folder itself, when it is one, or those inside."""
    inside = sorted(path.parent for path in folder.glob(f"*/{CARD}"))
    found = [folder.resolve()] if (folder / CARD).is_file() else inside
    return {path.name: path for path in found if not path.name.startswith(".")}


def newest_adapter(folder: Path, method: str = "", without: Collection[str] = ()) -> str | None:
    """The name of the version made last that takes prompts (of one method, when one is named).

    Raises `AdapterError` for a card that cannot be read.
    """
    cards = {name: read_card(path) for name, path in adapter_folders(folder).items() if name not in without}
    fitting = [
        name for name, card in cards.items() if card.method.prompts and method in ("", card.method.name)
    ]
    return max(fitting, key=lambda name: cards[name].created, default=None)


def newest_promptless(folder: Path) -> Path | None:
    """The folder of the version made last that segments by itself; raises as `newest_adapter`."""
    cards = {path: read_card(path) for path in adapter_folders(folder).values()}
    found = [path for path, card in cards.items() if not card.method.prompts]
    return max(found, key=lambda path: cards[path].created, default=None)


def starter_adapter(backbone: str) -> Path | None:
    """The adapter that comes with the package: served on its backbone until a site has a better one."""
    return adapter_folders(SHIPPED / backbone).get(STARTER)


class AdapterBank:
    """The adapter versions of a folder on one frozen base, by name, and the starter adapter.

    Each is read when it is first asked for. Versions that are added to the folder later are found too.
    Threads may share it; `MOST_LOADED` versions, those used last, stay in memory.
    """

    def __init__(self, sam: Sam, folder: Path | None = None) -> None:
        self.sam = sam
        self.folder = folder
        self._models: OrderedDict[Path, tuple[object, AdaptedSam]] = OrderedDict()
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """All versions, by name."""
        return sorted(self._folders())

    def model(self, name: str) -> AdaptedSam:
        """The adapted model `name`; raises `NotFoundError` with the known names, `AdapterError`."""
        folders = self._folders()
        if name not in folders:
            known = ", ".join(sorted(folders)) or "none"
            raise NotFoundError(f"unknown adapter '{name[:64]}'; there are: {known}")
        return self.load(folders[name])

    def load(self, folder: Path) -> AdaptedSam:
        """The adapted model of the version in `folder`, wherever it lies; raises as `load_adapter`."""
        key = folder.resolve()
        with self._lock:
            stamp = _stamp(folder)
            known = self._models.pop(key, None)
            if known is None or known[0] != stamp:
                known = stamp, load_adapter(self.sam, folder)
            self._models[key] = known
            while len(self._models) > MOST_LOADED:
                self._models.popitem(last=False)
            return known[1]

    def _folders(self) -> dict[str, Path]:
        shipped = adapter_folders(SHIPPED / self.sam.config.name)
        return shipped | (adapter_folders(self.folder) if self.folder is not None else {})


def _stamp(folder: Path) -> object:
    """Another one when the version was written anew."""
    found = [path for path in (folder / TENSORS, folder / CARD) if path.is_file()]
    return [(stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in map(Path.stat, found)]


def _kept(model: AdaptedSam) -> dict[str, Tensor]:
    return {name: parameter.detach().contiguous() for name, parameter in model.kept_parameters()}


def _check(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], folder: Path) -> None:
    wrong = [f"missing {name}" for name in sorted(expected.keys() - tensors.keys())]
    wrong += [f"unknown {name}" for name in sorted(tensors.keys() - expected.keys())]
    wrong += [
        f"{name} has shape {tuple(tensors[name].shape)}, not {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    if wrong:
        shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise AdapterError(f"the adapter {folder.name} does not fit its method: {shown}")
