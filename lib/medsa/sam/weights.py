"""Weights of the backbones: found, downloaded, checked against their pinned hash and kept as safetensors."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import logging
import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from medsa.config import cache_dir
from medsa.errors import WeightsError
from medsa.sam.backbone import Backbone, read_backbone, read_backbones

log = logging.getLogger(__name__)

TIMEOUT = httpx.Timeout(30.0)
_UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, SafetensorError)


def weights_folder() -> Path:
    """Where weights are kept and looked for (mode 0700)."""
    folder = cache_dir() / "weights"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def locate(backbone: Backbone | str) -> Path | None:
    """The file this backbone would be loaded from, or None when it has to be downloaded or given first.

    Looked for in this order: the converted copy in the cache, the published file placed in the cache by hand,
    the file inside an installed package.
    """
    backbone = read_backbone(backbone) if isinstance(backbone, str) else backbone
    kept = _kept(backbone, _wanted(backbone))
    candidates = [kept, weights_folder() / backbone.weights.file, _packaged(backbone)]
    return next((path for path in candidates if path is not None and path.is_file()), None)


def backbone_table() -> list[dict[str, str]]:
    """One row a backbone, for people: name, title, parameters, input, prompts, licence, weights (where)."""
    rows = []
    for backbone in read_backbones():
        path = locate(backbone)
        if path is not None:
            where = str(path)
        elif backbone.weights.url:
            where = f"downloaded at first use from {backbone.weights.url}"
        else:
            where = f"not here: put {backbone.weights.file} into {weights_folder()}"
        rows.append(
            {
                "name": backbone.name,
                "title": backbone.title,
                "parameters": f"{backbone.parameters / 1e6:.1f} M",
                "input": f"{backbone.image_size} x {backbone.image_size}",
                "prompts": ", ".join(backbone.trained_prompts),
                "licence": backbone.licence,
                "weights": where,
            }
        )
    return rows


def read_weights(
    backbone: Backbone, expected: Mapping[str, Tensor], path: Path | None = None
) -> tuple[dict[str, Tensor], str]:
    """The backbone's tensors by name, on the CPU, and the sha256 of the file they were published in.

    `expected` are tensors of the right names and shapes. `path` is a checkpoint the user chose (.pth, .pt or
    .safetensors): any hash is accepted. Without it the weights are found (`locate`) or downloaded, and must
    have the pinned hash. Raises `WeightsError`.
    """
    chosen, downloaded = path is not None, False
    if path is None:
        kept = _kept(backbone, _wanted(backbone))
        if kept is not None:
            try:
                return _read_kept(backbone, kept, expected)
            except WeightsError as error:
                log.warning("%s; it is made again", error)
                kept.unlink(missing_ok=True)
        path = locate(backbone)
        if path is None:
            path, downloaded = download(backbone), True
    if not path.is_file():
        raise WeightsError(f"there is no weights file {path}")
    digest = _sha256(path)
    pinned = backbone.weights.sha256
    if pinned and digest != pinned and not chosen:
        raise WeightsError(
            f"{path} is damaged or not the published file of {backbone.name}: its sha256 is {digest}, "
            f"expected {pinned}. Replace it, or give the path of another file."
        )
    tensors = check_tensors(_read(path), expected, backbone.weights.ignored, path.name)
    if pinned in (None, digest):
        kept_now = _keep(backbone, tensors, digest)
        if downloaded and kept_now:
            path.unlink()
    return tensors, digest


def check_tensors(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], ignored: tuple[str, ...], source: str
) -> dict[str, Tensor]:
    """The tensors of `expected`, leaving out those whose name starts with one of `ignored`.

    Raises `WeightsError` naming every tensor of the file `source` that is missing, unexpected or misshapen.
    """
    tensors = {name: value for name, value in tensors.items() if not name.startswith(ignored)}
    problems = [f"missing {name}" for name in expected if name not in tensors]
    for name, value in tensors.items():
        if name not in expected:
            problems.append(f"unexpected {name}")
        elif value.shape != expected[name].shape:
            problems.append(f"{name} has shape {tuple(value.shape)}, not {tuple(expected[name].shape)}")
    if problems:
        raise WeightsError(
            f"{source} does not fit the model in {len(problems)} tensors: {'; '.join(problems)}"
        )
    return tensors


def download(backbone: Backbone) -> Path:
    """Fetch the published file into the cache; resumes an earlier attempt and checks the pinned hash.

    Shows a progress bar on a terminal. Two processes never write the same file. Raises `WeightsError`.
    """
    weights = backbone.weights
    target = weights_folder() / weights.file
    advice = f"Put the file {weights.file} into {weights_folder()}, or give its path."
    if weights.url is None or weights.sha256 is None:
        raise WeightsError(
            f"the weights of {backbone.name} ({backbone.source}) are not here and have no download. {advice}"
        )
    part = target.with_name(target.name + ".part")
    with _locked(target):
        if target.is_file():
            return target
        try:
            _fetch(weights.url, part, weights.bytes)
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            raise WeightsError(
                f"{weights.url} answered {status}; {backbone.name} could not be downloaded. {advice}"
            ) from None
        except (httpx.HTTPError, OSError) as error:
            raise WeightsError(
                f"{backbone.name} could not be downloaded from {weights.url} ({error}). {advice}"
            ) from None
        digest = _sha256(part)
        if digest != weights.sha256:
            part.unlink()
            raise WeightsError(
                f"what {weights.url} gave is not the published file of {backbone.name} and was deleted: "
                f"its sha256 is {digest}, expected {weights.sha256}. {advice}"
            )
        part.replace(target)
    return target


def _fetch(url: str, part: Path, size: int | None) -> None:
    """Append to `part` what is still missing of `url`; starts anew when the server cannot continue."""
    start = part.stat().st_size if part.exists() else 0
    if size is not None and start >= size:
        return
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    log.info("downloading %s (%s bytes)", url, size or "unknown")
    with httpx.stream("GET", url, headers=headers, timeout=TIMEOUT, follow_redirects=True) as response:
        if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            return
        response.raise_for_status()
        resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
        start = start if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else size
        bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None)
        with bar, _private(part, append=resumed) as file:
            for chunk in response.iter_raw():
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        if total is not None and part.stat().st_size < total:
            raise OSError(
                f"the connection ended after {part.stat().st_size} of {total} bytes; try again to continue"
            )


def _wanted(backbone: Backbone) -> str | None:
    """The hash of the weights to use: the pinned one, else the one recorded when the user gave the file."""
    record = weights_folder() / f"{backbone.weights.file}.sha256"
    if backbone.weights.sha256 is None and record.is_file():
        return record.read_text("ascii").strip()
    return backbone.weights.sha256


def _packaged(backbone: Backbone) -> Path | None:
    if backbone.weights.package is None:
        return None
    package, _, inside = backbone.weights.package.partition("/")
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent / inside if spec is not None and spec.origin else None


def _kept(backbone: Backbone, digest: str | None) -> Path | None:
    """The converted copy of the file with this hash; the second half of its name is its own hash."""
    if digest is None:
        return None
    stem = Path(backbone.weights.file).stem
    return next(iter(sorted(weights_folder().glob(f"{stem}-{digest[:16]}-*.safetensors"))), None)


def _keep(backbone: Backbone, tensors: Mapping[str, Tensor], digest: str) -> bool:
    """Write the converted copy, and record the hash where none is pinned; False when there is no room."""
    folder, stem = weights_folder(), Path(backbone.weights.file).stem
    try:
        with tempfile.TemporaryDirectory(dir=folder) as private:
            fresh = Path(private) / "weights"
            save_file(
                {name: value.contiguous() for name, value in tensors.items()}, fresh, {"sha256": digest}
            )
            fresh.chmod(0o600)
            with fresh.open("rb") as file:
                os.fsync(file.fileno())
            fresh.replace(folder / f"{stem}-{digest[:16]}-{_sha256(fresh)[:16]}.safetensors")
            if backbone.weights.sha256 is None:
                with _private(fresh) as file:
                    file.write(digest.encode())
                fresh.replace(folder / f"{backbone.weights.file}.sha256")
    except (OSError, SafetensorError) as error:
        log.warning("the weights of %s cannot be kept in %s: %s", backbone.name, folder, error)
        return False
    return True


def _read_kept(
    backbone: Backbone, path: Path, expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """Tensors of a converted copy and the hash of their source; raises `WeightsError` when damaged."""
    if not _sha256(path).startswith(path.stem.rpartition("-")[2]):
        raise WeightsError(f"the cached weights {path} are damaged")
    with safe_open(path, "pt") as file:
        digest = file.metadata()["sha256"]
    return check_tensors(load_file(path), expected, backbone.weights.ignored, path.name), digest


def _read(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, never running code from it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as weights, it is damaged or no checkpoint: {reason}"
        ) from None
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        content = content["model"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path} is no checkpoint: it does not hold tensors by name")
    return dict(content)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _private(path: Path, *, append: bool = False) -> Iterator:
    """A binary file for writing that only its owner may read."""
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_TRUNC)
    with os.fdopen(os.open(path, flags, 0o600), "ab" if append else "wb") as file:
        yield file


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    """Held by one process at a time for one target file."""
    with _private(target.with_name(f".{target.name}.lock")) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
