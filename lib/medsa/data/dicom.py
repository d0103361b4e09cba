"""DICOM images to volumes: one series of single slices, or one multi-frame object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.uid import UID

from medsa.data.geometry import normal, plane_affine, stack
from medsa.data.limits import check_memory
from medsa.data.pixels import DAMAGED, PIXEL_KEYWORDS, decoded, is_grey, rescaled
from medsa.data.volume import Volume
from medsa.errors import UnreadableImageError

_NOT_IMAGES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation (SEG)",
    "1.2.840.10008.5.1.4.1.1.66.7": "a segmentation (label map)",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose (RTDOSE)",
    "1.2.840.10008.5.1.4.1.1.481.3": "a radiotherapy structure set (RTSTRUCT)",
    "1.2.840.10008.5.1.4.1.1.104.1": "an encapsulated PDF",
}
_SAME_SPACING = 1e-3
_AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Frame:
    """One plane of a series: where it lies and how its stored values become values.

    `position` (3,) and `orientation` (6,) LPS mm, or None when the object does not say; `spacing` (2,) mm
    between rows and between columns; `thickness` mm, the distance to a neighbour if nothing better is known;
    `side` of the plane on which the next one of the object then lies: 1 along the normal, -1 against it.
    """

    source: int
    number: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float]
    thickness: float
    side: float
    slope: float
    intercept: float


def not_an_image(dataset: Dataset) -> str | None:
    """What `dataset` is when it is no image of pixels (a report, a segmentation ...), None when it is one."""
    kind = _NOT_IMAGES.get(str(dataset.get("SOPClassUID", "")))
    if kind:
        return kind
    if "Rows" in dataset and "Columns" in dataset:
        return None
    name = UID(str(dataset.get("SOPClassUID", ""))).name.removesuffix(" Storage")
    return f"an object without pixels ({name or dataset.get('Modality', '') or 'of unknown kind'})"


def volume_from_datasets(datasets: Sequence[Dataset]) -> Volume:
    """The volume of one series, slices ascending along the normal (row x column cosines).

    Frames of one object that lie at one place, or at none, stay in their order.
    `datasets` are all images of the series in any order (objects sent twice count once), or one multi-frame
    object. Raises `UnreadableImageError` naming the problem for anything that is no single stack of parallel,
    evenly spaced slices of one size, and `TooLargeError` before allocating what memory does not hold.
    """
    try:
        return _volume(_unique(datasets))
    except DAMAGED as error:
        raise UnreadableImageError(
            f"the DICOM header cannot be read: a field breaks the standard ({type(error).__name__})"
        ) from error


def is_film(header: Dataset) -> bool:
    """True for an object of several frames at one place, or at none: its third axis is not one of space."""
    frames = list(frames_of(header))
    return len(frames) > 1 and _at_one_place(frames)


def frame_order(header: Dataset) -> list[int]:
    """For a multi-frame object, the index (from 0) of the stored frame at each k of its volume."""
    frames = list(frames_of(header))
    return [frame.number for frame in _sorted(frames)[0]]


def _unique(datasets: Sequence[Dataset]) -> list[Dataset]:
    if not datasets:
        raise UnreadableImageError("the series holds no object")
    named = {str(ds.get("SOPInstanceUID", "")) or f"#{index}": ds for index, ds in enumerate(datasets)}
    return list(named.values())


def _volume(datasets: list[Dataset]) -> Volume:
    _check_one_series(datasets)
    first = datasets[0]
    rows, columns, grey = int(first.Rows), int(first.Columns), is_grey(first)
    stored = max(1, int(first.get("BitsAllocated", 8)) // 8)
    check_memory((columns, rows, sum(map(_frame_count, datasets))), stored + 4 if grey else 6)
    _check_complete(datasets)
    frames = [frame for index, dataset in enumerate(datasets) for frame in frames_of(dataset, index)]
    ordered, step = _sorted(frames)
    values = (_grey_voxels if grey else _rgb_voxels)(datasets, ordered, (rows, columns))
    origin = ordered[0]
    affine = plane_affine(
        origin.position or (0.0, 0.0, 0.0), origin.orientation or _AXIAL, origin.spacing, step
    )
    headers = [header_of(dataset) for dataset in datasets]
    return Volume(
        voxels=values.swapaxes(0, 2),
        affine=affine,
        modality=str(first.get("Modality", "") or ""),
        uid=str(first.get("SeriesInstanceUID", "") or ""),
        headers=tuple(headers if len(headers) == 1 else (headers[frame.source] for frame in ordered)),
    )


def _check_one_series(datasets: list[Dataset]) -> None:
    for dataset in datasets:
        kind = not_an_image(dataset)
        if kind:
            raise UnreadableImageError(f"the series holds {kind}, not an image; choose an image series")
    series = {str(ds.get("SeriesInstanceUID", "")) for ds in datasets}
    if len(series) > 1:
        raise UnreadableImageError(f"these are images of {len(series)} series; give one series at a time")
    if len({str(ds.get("FrameOfReferenceUID", "")) for ds in datasets}) > 1:
        raise UnreadableImageError(
            "the images have different frames of reference, so their places do not compare"
        )
    sizes = {(int(ds.Columns), int(ds.Rows)) for ds in datasets}
    if len(sizes) > 1:
        listed = ", ".join(f"{columns} x {rows}" for columns, rows in sorted(sizes))
        raise UnreadableImageError(f"the images of the series have different sizes ({listed})")
    if min(sizes.pop()) < 1:
        raise UnreadableImageError("the image has no rows or no columns")
    if len({is_grey(ds) for ds in datasets}) > 1:
        raise UnreadableImageError("the series mixes grey and colour images")
    multi = sum(_frame_count(ds) > 1 for ds in datasets)
    if multi and len(datasets) > 1:
        raise UnreadableImageError(
            f"the series holds {len(datasets)} objects, {multi} with several frames; open one at a time"
        )


def _check_complete(datasets: list[Dataset]) -> None:
    """Raise `UnreadableImageError` for objects that cannot hold the frames they announce."""
    for dataset in datasets:
        pixels = next((dataset[keyword].value for keyword in PIXEL_KEYWORDS if keyword in dataset), None)
        if pixels is None:
            raise UnreadableImageError("an image has no pixel data: the object is cut off or was stripped")
        syntax = getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID")
        frame = 8 if syntax and syntax.is_compressed else dataset.Rows * dataset.Columns // 8
        if len(pixels) < _frame_count(dataset) * frame:
            raise UnreadableImageError(
                "the pixel data is cut off: it holds fewer frames than the header says"
            )


def _grey_voxels(datasets: list[Dataset], ordered: list[Frame], size: tuple[int, int]) -> NDArray:
    """Values (K, rows, columns), uint8, int16 or float32."""
    stored: NDArray = np.empty(0)
    for k, frame in _pixels(datasets, ordered, size):
        if not stored.size:
            stored = np.empty((len(ordered), *size), frame.dtype)
        elif stored.dtype != frame.dtype:
            stored = stored.astype(np.result_type(stored, frame))
        stored[k] = frame
    slopes = np.asarray([frame.slope for frame in ordered])
    return rescaled(stored, slopes, np.asarray([frame.intercept for frame in ordered]))


def _rgb_voxels(datasets: list[Dataset], ordered: list[Frame], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Colours (K, rows, columns, 3) uint8."""
    values = np.empty((len(ordered), *size, 3), np.uint8)
    for k, frame in _pixels(datasets, ordered, size):
        values[k] = frame
    return values


def _pixels(
    datasets: list[Dataset], ordered: list[Frame], size: tuple[int, int]
) -> Iterator[tuple[int, NDArray]]:
    """Each decoded frame with its k, one at a time."""
    place = {(frame.source, frame.number): k for k, frame in enumerate(ordered)}
    for source, dataset in enumerate(datasets):
        number = -1
        for number, pixels in enumerate(decoded(dataset)):
            if pixels.shape[:2] != size:
                raise UnreadableImageError(
                    f"the pixel data is of {pixels.shape[:2]} rows and columns, not {size}"
                )
            yield place[source, number], pixels
        if number + 1 != _frame_count(dataset):
            raise UnreadableImageError(f"the pixel data holds {number + 1} of {_frame_count(dataset)} frames")


def header_of(dataset: Dataset) -> Dataset:
    """A shallow copy of `dataset` without pixels, overlays and the icon; the file meta comes along."""
    kept: dict[BaseTag, DataElement | RawDataElement] = {
        tag: dataset.get_item(tag)
        for tag in dataset.keys()  # noqa: SIM118 (iterating a Dataset gives elements, and parses them)
        if tag.group != 0x7FE0 and not 0x6000 <= tag.group < 0x6100 and tag != 0x00880200
    }
    header = Dataset(kept)
    implicit, little = dataset.original_encoding
    header.set_original_encoding(implicit, little, dataset.original_character_set)
    header.file_meta = FileMetaDataset(getattr(dataset, "file_meta", {}))
    return header


def _frame_count(dataset: Dataset) -> int:
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    if count < 1:
        raise UnreadableImageError(f"NumberOfFrames is {count}")
    return count


def frames_of(dataset: Dataset, source: int = 0) -> Iterator[Frame]:
    """The planes of one object in stored order, from its functional groups or its plain header."""
    plain = Frame(
        source,
        0,
        position=_numbers(dataset, "ImagePositionPatient", 3),
        orientation=_numbers(dataset, "ImageOrientationPatient", 6),
        spacing=_plain_spacing(dataset),
        thickness=_number(dataset, "SpacingBetweenSlices") or _number(dataset, "SliceThickness") or 1.0,
        side=_side(dataset),
        slope=_rescale(dataset, "RescaleSlope", 1.0),
        intercept=_rescale(dataset, "RescaleIntercept", 0.0),
    )
    count, per_frame = _frame_count(dataset), dataset.get("PerFrameFunctionalGroupsSequence")
    if not per_frame:
        detector = (dataset.get("DetectorInformationSequence") or [Dataset()])[0]
        if plain.position is None and "ImagePositionPatient" in detector:
            plain = replace(
                plain,
                position=_numbers(detector, "ImagePositionPatient", 3),
                orientation=_numbers(detector, "ImageOrientationPatient", 6),
            )
        yield from (replace(plain, number=number) for number in range(count))
        return
    if len(per_frame) != count:
        raise UnreadableImageError(
            f"the object has {count} frames, but its header describes {len(per_frame)}"
        )
    yield from (_enhanced(dataset, replace(plain, number=number)) for number in range(count))


def functional_group(dataset: Dataset, number: int, keyword: str) -> Dataset:
    """A functional group of frame `number` (from 0), its own before the shared; empty if there is none."""
    own, shared = (dataset.get(f"{kind}FunctionalGroupsSequence") for kind in ("PerFrame", "Shared"))
    for groups in (own[number] if own else Dataset(), shared[0] if shared else Dataset()):
        found = groups.get(keyword)
        if found:
            return found[0]
    return Dataset()


def _enhanced(dataset: Dataset, plain: Frame) -> Frame:
    """The frame that functional groups describe (PS3.3 C.7.6.16)."""
    position, orientation, measures, values = (
        functional_group(dataset, plain.number, f"{name}Sequence")
        for name in ("PlanePosition", "PlaneOrientation", "PixelMeasures", "PixelValueTransformation")
    )
    return replace(
        plain,
        position=_numbers(position, "ImagePositionPatient", 3) or plain.position,
        orientation=_numbers(orientation, "ImageOrientationPatient", 6) or plain.orientation,
        spacing=_pair(measures, "PixelSpacing") or plain.spacing,
        thickness=_number(measures, "SpacingBetweenSlices")
        or _number(measures, "SliceThickness")
        or plain.thickness,
        slope=_rescale(values, "RescaleSlope", plain.slope),
        intercept=_rescale(values, "RescaleIntercept", plain.intercept),
    )


def _numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    value = dataset.get(keyword)
    if value is None or len(value) == 0:
        return None
    numbers = tuple(float(number) for number in value)
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise UnreadableImageError(f"{keyword} does not hold {count} numbers")
    return numbers


def _number(dataset: Dataset, keyword: str) -> float | None:
    value = dataset.get(keyword)
    number = 0.0 if value is None or value == "" else abs(float(value))
    return number if 0 < number < np.inf else None


def _side(dataset: Dataset) -> float:
    """What the sign of SpacingBetweenSlices means in nuclear medicine, and nowhere else (PS3.3 C.8.4.15)."""
    spacing = float(dataset.get("SpacingBetweenSlices") or 0)
    return -1.0 if dataset.get("Modality") == "NM" and spacing < 0 else 1.0


def _rescale(dataset: Dataset, keyword: str, default: float) -> float:
    value = dataset.get(keyword)
    number = default if value is None or value == "" else float(value)
    if not np.isfinite(number) or (keyword == "RescaleSlope" and number == 0):
        raise UnreadableImageError(f"{keyword} is {number:g}")
    return number


def _pair(dataset: Dataset, keyword: str) -> tuple[float, float] | None:
    pair = _numbers(dataset, keyword, 2)
    if pair is None:
        return None
    if min(pair) <= 0:
        raise UnreadableImageError(f"{keyword} is not positive")
    return pair[0], pair[1]


def _plain_spacing(dataset: Dataset) -> tuple[float, float]:
    """PixelSpacing (rows, columns), or that of the detector or ultrasound region, or 1 mm by aspect ratio."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        pair = _pair(dataset, keyword)
        if pair:
            return pair
    regions = dataset.get("SequenceOfUltrasoundRegions") or []
    if len(regions) == 1 and regions[0].get("PhysicalUnitsXDirection") == 3 == regions[0].get(
        "PhysicalUnitsYDirection"
    ):
        x, y = _number(regions[0], "PhysicalDeltaX"), _number(regions[0], "PhysicalDeltaY")
        if x and y:
            return 10 * y, 10 * x
    aspect = _pair(dataset, "PixelAspectRatio")
    return (aspect[0] / aspect[1], 1.0) if aspect else (1.0, 1.0)


def _at_one_place(frames: list[Frame]) -> bool:
    return len({frame.position for frame in frames}) == 1


def _sorted(frames: list[Frame]) -> tuple[list[Frame], NDArray[np.float64]]:
    """Frames in the order of k, and the step (3,) LPS mm from one to the next."""
    first = frames[0]
    spacing = np.asarray([frame.spacing for frame in frames])
    if np.abs(spacing / spacing[0] - 1).max() > _SAME_SPACING:
        raise UnreadableImageError("the images of the series have different pixel spacings")
    alone = np.asarray(first.thickness * normal(first.orientation or _AXIAL))
    if len(frames) == 1:
        return frames, alone
    if len({frame.source for frame in frames}) == 1 and _at_one_place(frames):
        return frames, first.side * alone
    placed = [frame for frame in frames if frame.position is not None and frame.orientation is not None]
    if len(placed) < len(frames):
        raise UnreadableImageError(
            f"{len(frames) - len(placed)} of {len(frames)} images do not say where they lie "
            "(ImagePositionPatient, ImageOrientationPatient): they make no volume; open one image at a time"
        )
    order, step = stack([f.position or () for f in frames], [f.orientation or () for f in frames])
    return [frames[index] for index in order], step
