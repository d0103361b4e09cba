"""Masks as DICOM Segmentation objects (PS3.3 A.51), and back on the full grid of their series."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

import numpy as np
from highdicom.color import CIELabColor
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM

import medsa
from medsa.data.dicom import Frame, frame_order, frames_of, functional_group, is_film, not_an_image
from medsa.data.geometry import plane_affine
from medsa.data.labels import SIDES, Code, Label, LabelSet
from medsa.data.pixels import DAMAGED, stored_frame
from medsa.data.seg_source import repeatable_headers
from medsa.data.volume import Volume
from medsa.errors import LabelMismatchError, UnreadableImageError

HUMAN = ("MANUAL", "SEMIAUTOMATIC")
_ORIGINAL = "ORIGINAL"
_DCMJS = "Unspecified"
"""Manufacturer and model by which the SEGs of dcmjs, the library of OHIF, are known."""
_UNDATED = datetime.min.replace(tzinfo=UTC)
_OFF_GRID = 0.3
"""Voxels by which a corner of a frame may miss the grid: positions are written with few digits."""


@dataclass(frozen=True)
class Algorithm:
    """The program that helped to draw a segment."""

    name: str
    version: str


def write_seg(
    mask: NDArray,
    volume: Volume,
    labels: LabelSet,
    *,
    names: Mapping[int, str] | None = None,
    algorithm: Algorithm | None = None,
    author: str = "",
    tag: str = "final",
) -> Dataset:
    """A BINARY SEG of `mask` (I, J, K), a map of label values on the grid of `volume`, 0 for background.

    `names` says which label a value stands for; without it the values are the indices of `labels`. Segments
    are numbered from 1 in the order of the values, SEMIAUTOMATIC with an `algorithm`, else MANUAL. Only
    slices that hold a segment are written, each with a reference to its source image. `tag` is kept as
    ContentLabel: "final" for what a person accepted, "original" for a model's own output (see `seg_series`).
    Dates are in the time zone that the series names (TimezoneOffsetFromUTC), so that the study's date which
    the SEG repeats stays true, or else in UTC; either way the SEG names it.
    Raises `LabelMismatchError` for another grid, an empty mask, and series that a SEG cannot refer to, and
    `BadInputError` for labels that `labels` does not have.
    """
    checked = check_mask(mask, volume)
    values = [int(value) for value in np.unique(checked) if value]
    chosen = [
        labels.by_name(names[value]) if names and value in names else labels.by_index(value)
        for value in values
    ]
    numbers = np.zeros(256, np.uint8)
    numbers[values] = np.arange(1, len(values) + 1)
    sources = repeatable_headers(volume)
    frames = np.ascontiguousarray(numbers[checked].T)
    if len(sources) == 1 and len(frames) > 1:
        frames = frames[np.argsort(frame_order(volume.headers[0]))]
    now = datetime.now(_zone(sources[0]) or UTC)
    try:
        segmentation = Segmentation(
            source_images=sources,
            pixel_array=frames,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=[_segment(n, label, algorithm) for n, label in enumerate(chosen, start=1)],
            series_instance_uid=generate_uid(prefix=None),
            series_number=_series_number(sources[0]),
            sop_instance_uid=generate_uid(prefix=None),
            instance_number=1,
            manufacturer="medsa",
            manufacturer_model_name=algorithm.name if algorithm else "medsa",
            software_versions=medsa.__version__,
            device_serial_number="0",
            content_label=re.sub("[^A-Z0-9]", "_", tag.upper())[:16] or "FINAL",
            content_description=f"{len(chosen)} segment{'s' if len(chosen) > 1 else ''}",
            content_date=now.date(),
            content_time=now.time(),
            series_date=now.date(),
            series_time=now.time(),
            series_description=("medsa: " + ", ".join(label.name for label in chosen))[:64],
            specific_character_set="ISO_IR 192",
            omit_empty_frames=True,
        )
    except DAMAGED as error:
        raise LabelMismatchError(
            "no segmentation object can be made for this series: its headers are not complete or not valid "
            f"({type(error).__name__})"
        ) from error
    segmentation.TimezoneOffsetFromUTC = f"{now:%z}"
    segmentation.InstanceCreationDate, segmentation.InstanceCreationTime = DA(now.date()), TM(now.time())
    segmentation.PatientName = volume.headers[0].get("PatientName")
    segmentation.ContentCreatorName = author.replace("\\", " ")[:64]
    if "PlaneOrientationSequence" not in segmentation.SharedFunctionalGroupsSequence[0]:
        segmentation.PatientOrientation = sources[0].get("PatientOrientation")
    return segmentation


def check_mask(mask: NDArray, volume: Volume, *, empty: bool = False) -> NDArray[np.uint8]:
    """`mask` as uint8; raises `LabelMismatchError` if it is off the grid, or no map of labels.

    And if nothing is marked, unless it may be `empty`.
    """
    mask = np.asarray(mask)
    if mask.shape != volume.shape:
        raise LabelMismatchError(
            f"the label has {_size(mask.shape)} voxels, but the image {_size(volume.shape)}: another grid"
        )
    if mask.dtype == np.bool_:
        mask = mask.view(np.uint8)
    if mask.dtype != np.uint8:
        whole = mask.astype(np.uint8)
        if mask.dtype.kind not in "iuf" or (whole != mask).any():
            raise LabelMismatchError("a label must hold whole numbers from 0 to 255")
        mask = whole
    if not empty and not mask.any():
        raise LabelMismatchError("the label is empty: no voxel is marked")
    return mask


def _size(shape: Sequence[int]) -> str:
    return " x ".join(str(n) for n in shape)


def _segment(number: int, label: Label, algorithm: Algorithm | None) -> SegmentDescription:
    segment = SegmentDescription(
        segment_number=number,
        segment_label=label.name,
        segmented_property_category=_concept(label.category),
        segmented_property_type=_concept(label.type),
        algorithm_type="SEMIAUTOMATIC" if algorithm else "MANUAL",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=algorithm.name, version=algorithm.version, family=codes.DCM.ArtificialIntelligence
        )
        if algorithm
        else None,
        display_color=CIELabColor.from_rgb(*label.color),
    )
    if label.laterality:
        modifier = _concept(SIDES[label.laterality])
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return segment


def _concept(code: Code) -> CodedConcept:
    return CodedConcept(value=code.value, scheme_designator=code.scheme, meaning=code.meaning)


def _series_number(source: Dataset) -> int:
    try:
        return min(1000 + abs(int(source.get("SeriesNumber") or 0)), 2**31 - 1)
    except (TypeError, ValueError):
        return 1000


class SegSeries(NamedTuple):
    """What a SEG says about itself: the series it is of ("" if it does not say), who made it, and when."""

    series: str
    human: bool
    when: datetime


def seg_series(dataset: Dataset) -> SegSeries:
    """The image series a SEG refers to most, whether a person made it, and its date; the header is enough.

    Human-made means that a segment is MANUAL or SEMIAUTOMATIC and the object is not tagged "original" by
    `write_seg`. `when` is in UTC, the first of all dates when the object has no readable one. Without
    TimezoneOffsetFromUTC a date counts as this machine's local time, as most programs write it, but as UTC
    when OHIF's viewer wrote it.
    """
    counts: dict[str, int] = {}
    for item in dataset.get("ReferencedSeriesSequence") or []:
        uid = str(item.get("SeriesInstanceUID", ""))
        counts[uid] = counts.get(uid, 0) + len(item.get("ReferencedInstanceSequence") or [])
    kinds = {str(segment.get("SegmentAlgorithmType", "")) for segment in dataset.get("SegmentSequence") or []}
    human = not kinds.isdisjoint(HUMAN) and dataset.get("ContentLabel") != _ORIGINAL
    return SegSeries(max(counts, key=lambda uid: counts[uid], default=""), human, _when(dataset))


def _when(dataset: Dataset) -> datetime:
    for kind in ("Content", "Series", "InstanceCreation"):
        try:
            date, time = DA(dataset.get(f"{kind}Date")), TM(dataset.get(f"{kind}Time") or "000000")
            return datetime.combine(date, time, _zone(dataset)).astimezone(UTC)
        except (TypeError, ValueError, OverflowError):
            continue
    return _UNDATED


def _zone(dataset: Dataset) -> tzinfo | None:
    """The time zone of the dates in `dataset`; None when nothing tells it."""
    offset = str(dataset.get("TimezoneOffsetFromUTC") or "")
    if re.fullmatch(r"[+-](0\d|1[0-4])[0-5]\d", offset):
        return datetime.strptime(offset, "%z").tzinfo
    by_dcmjs = dataset.get("Manufacturer") == dataset.get("ManufacturerModelName") == _DCMJS
    return UTC if by_dcmjs else None


def read_seg(
    dataset: Dataset, volume: Volume, labels: LabelSet | None = None
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """A SEG as a label map (I, J, K) uint8 on the whole grid of `volume`, and the name of each value.

    Each frame is put where its position and orientation say, or else on the slice it refers to. Where
    segments overlap, the later segment wins. With `labels`, a segment gets the index of the label of its
    name, or of its codes; unknown ones get values above. Without, the values are the segment numbers. A
    FRACTIONAL SEG counts from one half. Raises `LabelMismatchError` for the SEG of another series, off the
    grid or empty, and `UnreadableImageError` for one that is damaged.
    """
    try:
        return _read(dataset, volume, labels)
    except DAMAGED as error:
        raise UnreadableImageError(f"the segmentation is damaged ({type(error).__name__})") from error


def _read(
    dataset: Dataset, volume: Volume, labels: LabelSet | None
) -> tuple[NDArray[np.uint8], dict[int, str]]:
    if dataset.get("Modality") != "SEG" or not dataset.get("SegmentSequence"):
        raise LabelMismatchError(f"this is {not_an_image(dataset) or 'an image'}, not a segmentation")
    if not volume.headers:
        raise LabelMismatchError("the image is no DICOM series, so no DICOM segmentation can belong to it")
    kind, slices = dataset.get("SegmentationType"), _slices(volume)
    film = is_film(volume.headers[0])
    threshold = float(dataset.MaximumFractionalValue) / 2 if kind == "FRACTIONAL" else 1
    values, names = _values(dataset.SegmentSequence, labels)
    planes = [
        (
            _segment_of(dataset, frame.number),
            frame,
            {slices[source] for source in _references(dataset, frame.number) if source in slices},
        )
        for frame, _ in zip(frames_of(dataset), dataset.PerFrameFunctionalGroupsSequence, strict=False)
    ]
    _check_belongs(dataset, volume, any(sources for _, _, sources in planes))

    mask = np.zeros(volume.shape, np.uint8, order="F")
    for segment, frame, sources in sorted(planes, key=lambda plane: plane[0]):
        pixels = stored_frame(dataset, frame.number)
        rows, columns = np.nonzero(pixels >= threshold)
        if not rows.size:
            continue
        if frame.position and frame.orientation and not film:
            place = _place_by_geometry(frame, pixels.shape, volume)
        else:
            place = _place_by_source(sources, pixels.shape, volume)
        voxels = place @ np.stack([columns, rows, np.ones_like(rows)])
        if (voxels.min(axis=1) < 0).any() or (voxels.max(axis=1) >= volume.shape).any():
            raise LabelMismatchError("the segmentation reaches beyond the image")
        numbers = pixels[rows, columns] if kind == "LABELMAP" else segment
        mask[tuple(voxels)] = values[numbers]
    if not mask.any():
        raise LabelMismatchError("the segmentation is empty: no voxel is marked")
    return mask, names


def _check_belongs(dataset: Dataset, volume: Volume, refers: bool) -> None:
    """A SEG that refers to none of the images is only taken when it says that it shares their space."""
    place = volume.headers[0].get("FrameOfReferenceUID")
    shares = bool(place) and dataset.get("FrameOfReferenceUID") == place
    if not (refers or shares or (volume.uid and seg_series(dataset).series == volume.uid)):
        raise LabelMismatchError("the segmentation belongs to another series")


def _values(segments: Sequence[Dataset], labels: LabelSet | None) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Mask value of each segment number (an array to index), and the name of each value."""
    values = np.zeros(max(int(segment.SegmentNumber) for segment in segments) + 1, np.int64)
    names: dict[int, str] = {}
    for segment in segments:
        number, name = int(segment.SegmentNumber), str(segment.get("SegmentLabel") or "")
        known = _known(segment, name, labels, names) if labels else None
        if known:
            value, name = known.index, known.name
        else:
            value = max((*names, *labels.names)) + 1 if labels else number
        if not 0 < value < 256:
            raise LabelMismatchError("the segmentation has more segments than a mask has values (255)")
        values[number], names[value] = value, name or f"segment {number}"
    return values.astype(np.uint8), names


def _known(segment: Dataset, name: str, labels: LabelSet, taken: Mapping[int, str]) -> Label | None:
    """The label that a segment names; or else the one with its codes, if they say more than the category."""
    found = labels.find(name)
    if found:
        return found
    concept = segment.SegmentedPropertyTypeCodeSequence[0]
    sides = concept.get("SegmentedPropertyTypeModifierCodeSequence") or []
    for label in labels.labels:
        side = SIDES[label.laterality].value if label.laterality else None
        if (
            concept.get("CodeValue") == label.type.value != label.category.value
            and concept.get("CodingSchemeDesignator") == label.type.scheme
            and (sides[0].get("CodeValue") if sides else None) == side
            and label.index not in taken
        ):
            return label
    return None


def _segment_of(dataset: Dataset, number: int) -> int:
    """Segment number of a frame; 0 for a label map, whose frames hold all segments."""
    if dataset.get("SegmentationType") == "LABELMAP":
        return 0
    return int(functional_group(dataset, number, "SegmentIdentificationSequence").ReferencedSegmentNumber)


def _slices(volume: Volume) -> dict[tuple[str, int], int]:
    """(SOPInstanceUID, frame from 1) -> k."""
    if len(volume.headers) == 1:
        uid = str(volume.headers[0].get("SOPInstanceUID"))
        return {(uid, number + 1): k for k, number in enumerate(frame_order(volume.headers[0]))}
    return {(str(header.get("SOPInstanceUID")), 1): k for k, header in enumerate(volume.headers)}


def _references(dataset: Dataset, number: int) -> Iterator[tuple[str, int]]:
    """The source images (SOPInstanceUID, frame from 1) that a frame names."""
    derivation = functional_group(dataset, number, "DerivationImageSequence")
    for source in derivation.get("SourceImageSequence") or []:
        frame = source.get("ReferencedFrameNumber") or 1
        yield str(source.get("ReferencedSOPInstanceUID")), int(np.atleast_1d(frame)[0])


def _place_by_geometry(frame: Frame, size: tuple[int, ...], volume: Volume) -> NDArray[np.int64]:
    """(3, 3) integers that take (column, row, 1) of a frame to the voxel (i, j, k) that lies there."""
    affine = plane_affine(frame.position or (), frame.orientation or (), frame.spacing, np.zeros(3))
    exact = (np.linalg.inv(volume.affine) @ affine)[:3, [0, 1, 3]]
    whole = np.rint(exact).astype(np.int64)
    corners = np.array([[0, size[1] - 1, 0, size[1] - 1], [0, 0, size[0] - 1, size[0] - 1], [1, 1, 1, 1]])
    steps = np.abs(whole[:, :2])
    if np.abs((exact - whole) @ corners).max() > _OFF_GRID or (steps.sum(axis=0) != 1).any():
        raise LabelMismatchError("the segmentation lies off the grid of the image: resample it to the image")
    return whole


def _place_by_source(sources: set[int], size: tuple[int, ...], volume: Volume) -> NDArray[np.int64]:
    """The same for a frame that only names its source slice."""
    if len(sources) != 1 or size != volume.shape[1::-1]:
        raise LabelMismatchError("the segmentation does not say on which slice of the image it lies")
    return np.array([[1, 0, 0], [0, 1, 0], [0, 0, next(iter(sources))]])
