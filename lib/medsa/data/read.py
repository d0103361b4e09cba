"""Image files to volumes: NIfTI, NRRD, PNG and JPEG, a DICOM file or a folder with one DICOM series."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import nrrd
import numpy as np
import pydicom
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from medsa.data.dicom import not_an_image, volume_from_datasets
from medsa.data.geometry import LPS_TO_RAS
from medsa.data.limits import check_memory
from medsa.data.nifti_file import RGB24, read_nifti
from medsa.data.nrrd_file import read_nrrd
from medsa.data.pixels import DAMAGED
from medsa.data.volume import Volume
from medsa.errors import MedsaError, NotFoundError, UnreadableImageError

NIFTI = (".nii", ".nii.gz")
NRRD = (".nrrd",)
PICTURES = (".png", ".jpg", ".jpeg")
DICOM = (".dcm", ".dicom", ".ima")
_DEFERRED = 2**24
"""Bytes from which a value of a DICOM file is only read when it is asked for: after its size was checked."""

UNREADABLE = (ImageFileError, HeaderDataError, nrrd.NRRDError, UnidentifiedImageError, SyntaxError, *DAMAGED)
"""What the file libraries raise for damaged files."""


def read_volume(path: Path) -> Volume:
    """The image at `path`: .nii, .nii.gz, .nrrd, .png, .jpg, .jpeg by its name, anything else as DICOM.

    A folder must hold one DICOM image series (and may hold what is no image beside it). `uid` is the
    SeriesInstanceUID or the name without its ending. Raises `NotFoundError`, `UnreadableImageError` naming
    the problem, `TooLargeError` before memory runs out.
    """
    path = Path(path)
    if not path.exists():
        raise NotFoundError(f"there is no file or folder '{path.name}'")
    try:
        if path.is_dir():
            return _with_uid(volume_from_datasets(_one_series(path)), path)
        if path.stat().st_size == 0:
            raise UnreadableImageError("the file is empty")
        name = path.name.lower()
        if name.endswith(NIFTI):
            return _nifti(path)
        if name.endswith(NRRD):
            return _nrrd(path)
        if name.endswith(PICTURES):
            return _picture(path)
        dataset = read_dataset(path)
        if dataset is None:
            known = ", ".join(ending for ending in (*NIFTI, *NRRD, *PICTURES))
            raise UnreadableImageError(f"the file is neither DICOM nor one of {known}")
        return _with_uid(volume_from_datasets([dataset]), path)
    except UnreadableImageError as error:
        raise UnreadableImageError(f"{path.name}: {error}") from error
    except PermissionError:
        raise UnreadableImageError(f"{path.name}: no permission to read it") from None
    except UNREADABLE as error:
        raise UnreadableImageError(f"{path.name}: the file is cut off or damaged") from error


def stem(path: Path) -> str:
    """The file's name without its ending (.nii.gz and .seg.nrrd count as one ending); a folder has none."""
    if path.is_dir():
        return path.name
    for ending in (".nii.gz", ".seg.nrrd"):
        if path.name.lower().endswith(ending):
            return path.name[: -len(ending)]
    return path.stem


def _with_uid(volume: Volume, path: Path) -> Volume:
    return (
        volume
        if volume.uid
        else Volume(volume.voxels, volume.affine, volume.modality, stem(path), volume.headers)
    )


def read_dataset(path: Path) -> Dataset | None:
    """The DICOM object in a file, None when it is something else; damage raises `UnreadableImageError`."""
    try:
        return pydicom.dcmread(path, defer_size=_DEFERRED)
    except InvalidDicomError:
        pass
    except DAMAGED as error:
        raise UnreadableImageError(f"'{path.name}' is cut off or damaged ({type(error).__name__})") from error
    try:
        bare = pydicom.dcmread(path, force=True)
        return bare if "SOPClassUID" in bare or ("Rows" in bare and "Columns" in bare) else None
    except DAMAGED:
        return None


def read_header(path: Path) -> Dataset | None:
    """What a DICOM file, or the first one found in a folder, says about itself; None where there is none.

    Pixels are not read. Damaged files count as none: whoever reads the image says what is wrong.
    """
    files = sorted(entry for entry in path.rglob("*") if entry.is_file()) if path.is_dir() else [path]
    for file in files:
        if not file.name.lower().endswith((*NIFTI, *NRRD, *PICTURES)) and file.name != "DICOMDIR":
            with suppress(*DAMAGED, InvalidDicomError):
                header = pydicom.dcmread(file, force=True, stop_before_pixels=True)
                if "SOPClassUID" in header:
                    return header
    return None


def _one_series(folder: Path) -> list[Dataset]:
    series: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    others: list[str] = []
    for path in sorted(entry for entry in folder.rglob("*") if entry.is_file() and entry.name != "DICOMDIR"):
        dataset = read_dataset(path) if path.stat().st_size else None
        if dataset is None:
            if path.suffix.lower() in DICOM:
                raise UnreadableImageError(
                    f"'{path.name}' is empty or no DICOM file: the series is incomplete"
                )
            continue
        kind = not_an_image(dataset)
        if kind:
            others.append(kind)
        else:
            series[str(dataset.get("SeriesInstanceUID", ""))].append((path, dataset))
    if not series:
        raise UnreadableImageError(
            f"the folder holds no DICOM image, only {', '.join(sorted(set(others)))}" if others
            else "the folder holds no DICOM image"
        )  # fmt: skip
    if len(series) > 1:
        listed = "; ".join(
            f"{len(files)} x {files[0][1].get('Modality', '?')} as '{files[0][0].relative_to(folder)}'"
            for files in series.values()
        )
        raise UnreadableImageError(f"the folder holds {len(series)} series, give one of them: {listed}")
    return [dataset for _, dataset in next(iter(series.values()))]


def compact(values: NDArray, slope: float = 1.0, intercept: float = 0.0) -> NDArray:
    """`values * slope + intercept` in Fortran order: uint8 as it is, int16 where exact, else finite float32.

    NaN and -inf become the lowest finite value, +inf the highest. Raises `UnreadableImageError` for complex
    and structured values and when nothing is finite.
    """
    if values.dtype.kind not in "buif":
        raise UnreadableImageError(
            f"the voxels are of type {values.dtype}, not numbers that can be shown as grey"
        )
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        slope, intercept = 1.0, 0.0
    plain = (slope, intercept) == (1.0, 0.0)
    if plain and (values.dtype in (np.bool_, np.uint8, np.int16)):
        return np.array(values, np.int16 if values.dtype == np.int16 else np.uint8, order="F")
    if values.dtype.kind in "iu" and slope % 1 == 0 and intercept % 1 == 0:
        ends = np.array([float(values.min()), float(values.max())]) * slope + intercept
        if np.iinfo(np.int16).min <= ends.min() and ends.max() <= np.iinfo(np.int16).max:
            return (values.astype(np.int64, order="F") * int(slope) + int(intercept)).astype(np.int16)
    scaled = np.asfortranarray(values, np.float32)
    if (slope, intercept) != (1.0, 0.0):
        scaled = scaled * np.float32(slope) + np.float32(intercept)
    if not np.isfinite(scaled).all():
        finite = scaled[np.isfinite(scaled)]
        if not finite.size:
            raise UnreadableImageError("no voxel holds a finite number")
        scaled = np.nan_to_num(scaled, nan=finite.min(), neginf=finite.min(), posinf=finite.max())
    return scaled


def _as_volume(values: NDArray, affine: NDArray, path: Path) -> Volume:
    try:
        regular = np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9
    except np.linalg.LinAlgError:
        regular = False
    if not regular:
        raise UnreadableImageError("the header's geometry is not usable (no spacing, or not finite)")
    return Volume(values, np.asarray(affine, np.float64), uid=stem(path))


def _nifti(path: Path) -> Volume:
    try:
        stored, slope, intercept, affine = read_nifti(path)
        if stored.dtype == RGB24:
            return _as_volume(interleaved(np.stack([stored[name] for name in "RGB"], axis=-1)), affine, path)
        return _as_volume(compact(stored, slope, intercept), affine, path)
    except UNREADABLE as error:
        raise UnreadableImageError("the NIfTI file is cut off, damaged, or none") from error


def interleaved(colours: NDArray) -> NDArray[np.uint8]:
    """RGB (I, J, K, 3) with each slice contiguous and the three colours of a voxel side by side."""
    return np.ascontiguousarray(colours.swapaxes(0, 2), np.uint8).swapaxes(0, 2)


def _nrrd(path: Path) -> Volume:
    try:
        values, affine = read_nrrd(path)
        return _as_volume(compact(values), affine, path)
    except MedsaError:
        raise
    except UNREADABLE as error:
        raise UnreadableImageError("the NRRD file is cut off, damaged, or none") from error


def _picture(path: Path) -> Volume:
    """PNG or JPEG: grey uint8 or int16 (16-bit), or RGB; 1 mm pixels, the third axis one slice."""
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise UnreadableImageError("the picture is animated; give a single picture")
            check_memory((image.width, image.height), 8)
            if image.mode in ("1", "L", "LA", "I", "I;16", "I;16B"):
                grey = np.asarray(image.convert("L") if image.mode in ("1", "LA") else image)
                return _as_volume(compact(grey.T[:, :, None]), LPS_TO_RAS, path)
            return _as_volume(
                interleaved(np.asarray(image.convert("RGB")).swapaxes(0, 1)[:, :, None]), LPS_TO_RAS, path
            )
    except Image.DecompressionBombError:
        raise UnreadableImageError("the picture unpacks to an unreasonable size and was not opened") from None
    except UNREADABLE as error:
        raise UnreadableImageError("the picture is cut off, damaged, or neither PNG nor JPEG") from error
