"""Masks as DICOM Segmentation objects (PS3.3 A.51), and back on the full grid of their series."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
from highdicom.color import CIELabColor
from highdicom.content import AlgorithmIdentificationSequence
from highdicom.seg import Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid
from pydicom.valuerep import DA, TM, validate_type_and_regex

import medsa
from medsa.data.dicom import Frame, frame_order, frames_of, functional_group, header_of, not_an_image
from medsa.data.geometry import plane_affine
from medsa.data.labels import SIDES, Code, Label, LabelSet
from medsa.data.limits import check_memory
from medsa.data.pixels import DAMAGED, stored_frames
from medsa.data.volume import Volume
from medsa.errors import LabelMismatchError, UnreadableImageError

HUMAN = ("MANUAL", "SEMIAUTOMATIC")
_ORIGINAL = "ORIGINAL"
_OFF_GRID = 0.3
"""Voxels by which a corner of a frame may miss the grid: positions are written with few digits."""
_PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
_STUDY = ("AccessionNumber", "StudyID", "StudyDate", "StudyTime")
_CHECKED = {"PatientBirthDate": "DA", "StudyDate": "DA", "StudyTime": "TM", "PatientAge": "AS"}


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
    sources = _sources(volume)
    frames = np.ascontiguousarray(numbers[checked].T)
    if len(sources) == 1 and len(frames) > 1:
        frames = frames[np.argsort(frame_order(volume.headers[0]))]
    now = datetime.now().astimezone()
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
            content_label="".join(c if c.isalnum() else "_" for c in tag.upper())[:16] or "FINAL",
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
            f"no segmentation object can be made for this series: its headers are not complete ({error})"
        ) from error
    segmentation.PatientName, segmentation.ContentCreatorName = volume.headers[0].get("PatientName"), author
    if "PlaneOrientationSequence" not in segmentation.SharedFunctionalGroupsSequence[0]:
        segmentation.PatientOrientation = sources[0].get("PatientOrientation")
    return segmentation


def check_mask(mask: NDArray, volume: Volume) -> NDArray[np.uint8]:
    """`mask` as uint8; raises `LabelMismatchError` if it is empty, off the grid, or no map of labels."""
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
    if not mask.any():
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


def _sources(volume: Volume) -> list[Dataset]:
    """The headers as a SEG may repeat them: what the standard demands is there, what breaks it is empty."""
    if not volume.headers:
        raise LabelMismatchError("the image is no DICOM series, so no DICOM segmentation can refer to it")
    sources = [header_of(header) for header in volume.headers]
    if len({source.get("StudyInstanceUID") for source in sources}) > 1:
        raise LabelMismatchError(
            "the images of the series name different studies: no DICOM segmentation can refer to them"
        )
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
        if not all(source.get(keyword) for source in sources):
            raise LabelMismatchError(f"the series has no {keyword}, so no DICOM segmentation can refer to it")
    placed = all(
        "ImagePositionPatient" in source or "PerFrameFunctionalGroupsSequence" in source for source in sources
    )
    if not placed and volume.shape[2] > 1:
        raise LabelMismatchError(
            "the frames do not say where they lie (a film or a sequence of pictures): a DICOM segmentation "
            "cannot refer to them; save the label as NIfTI or NRRD"
        )
    return [_repeatable(source, placed, float(volume.spacing[2])) for source in sources]


def _repeatable(source: Dataset, placed: bool, thickness: float) -> Dataset:
    changes: dict[str, Any] = {keyword: "" for keyword in (*_PATIENT, *_STUDY) if keyword not in source}
    for keyword, kind in _CHECKED.items():
        if not validate_type_and_regex(kind, str(source.get(keyword) or ""))[0]:
            changes[keyword] = ""
    if source.get("PatientSex") not in ("M", "F", "O"):
        changes["PatientSex"] = ""
    changes["PatientName"] = ""  # highdicom quotes names in warnings: it is set on the finished object
    if placed and not source.get("FrameOfReferenceUID"):
        changes["FrameOfReferenceUID"] = generate_uid(entropy_srcs=[source.SeriesInstanceUID])
    if not source.get("SliceThickness"):
        changes["SliceThickness"] = thickness
    per_frame = source.get("PerFrameFunctionalGroupsSequence")
    if per_frame:
        changes["SharedFunctionalGroupsSequence"] = [_shared_groups(source, per_frame[0])]
    for keyword, value in changes.items():
        source.pop(keyword, None)  # the elements are those of the header: replaced, not changed
        setattr(source, keyword, value)
    return source


def _shared_groups(source: Dataset, first: Dataset) -> Dataset:
    """Some scanners repeat at every frame what all share; highdicom looks for it among the shared groups."""
    shared = header_of((source.get("SharedFunctionalGroupsSequence") or [Dataset()])[0])
    for keyword in ("PixelMeasuresSequence", "PlaneOrientationSequence"):
        if keyword not in shared and keyword in first:
            setattr(shared, keyword, first[keyword].value)
    return shared


class SegSeries(NamedTuple):
    """What a SEG says about itself: the series it is of ("" if it does not say), who made it, and when."""

    series: str
    human: bool
    when: datetime


def seg_series(dataset: Dataset) -> SegSeries:
    """The image series a SEG refers to most, whether a person made it, and its date; the header is enough.

    Human-made means that a segment is MANUAL or SEMIAUTOMATIC and the object is not tagged "original" by
    `write_seg`. `when` has no time zone; it is `datetime.min` when the object has no readable date.
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
            return datetime.combine(date, time)
        except (TypeError, ValueError):
            continue
    return datetime.min


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
    _check_belongs(dataset, volume)
    values, names = _values(dataset.SegmentSequence, labels)
    kind, slices = dataset.get("SegmentationType"), _slices(volume)
    threshold = float(dataset.MaximumFractionalValue) / 2 if kind == "FRACTIONAL" else 1
    mask = np.zeros(volume.shape, np.uint8, order="F")
    segments = [_segment_of(dataset, number) for number in range(_frame_count(dataset))]
    frames = sorted(zip(segments, frames_of(dataset), strict=True), key=lambda pair: pair[0])
    check_memory((len(frames), dataset.Rows, dataset.Columns), 1)
    planes = list(stored_frames(dataset))
    for segment, frame in frames:
        pixels = planes[frame.number]
        rows, columns = np.nonzero(pixels >= threshold)
        if rows.size:
            place = _place(frame, pixels.shape, volume, _references(dataset, frame.number), slices)
            voxels = place @ np.stack([columns, rows, np.ones_like(rows)])
            if (voxels.min(axis=1) < 0).any() or (voxels.max(axis=1) >= volume.shape).any():
                raise LabelMismatchError("the segmentation reaches beyond the image")
            numbers = pixels[rows, columns] if kind == "LABELMAP" else segment
            mask[tuple(voxels)] = values[numbers]
    if not mask.any():
        raise LabelMismatchError("the segmentation is empty: no voxel is marked")
    return mask, names


def _check_belongs(dataset: Dataset, volume: Volume) -> None:
    """A SEG of another series is only taken where both say that they share a frame of reference."""
    if not volume.headers:
        raise LabelMismatchError("the image is no DICOM series, so no DICOM segmentation can belong to it")
    place = volume.headers[0].get("FrameOfReferenceUID")
    if seg_series(dataset).series != volume.uid and not (
        place and dataset.get("FrameOfReferenceUID") == place
    ):
        raise LabelMismatchError("the segmentation belongs to another series")


def _values(segments: Sequence[Dataset], labels: LabelSet | None) -> tuple[NDArray[np.uint8], dict[int, str]]:
    """Mask value of each segment number (an array to index), and the name of each value."""
    values = np.zeros(max(int(segment.SegmentNumber) for segment in segments) + 1, np.int64)
    names: dict[int, str] = {}
    for segment in segments:
        number, name = int(segment.SegmentNumber), str(segment.get("SegmentLabel") or "")
        known = _known(segment, name, labels) if labels else None
        above = max(names, default=0) if labels is None else max(*names, *labels.names)
        value = known.index if known else (above + 1 if labels else number)
        if not 0 < value < 256:
            raise LabelMismatchError("the segmentation has more than 255 segments")
        values[number], names[value] = value, known.name if known else name or f"segment {number}"
    return values.astype(np.uint8), names


def _known(segment: Dataset, name: str, labels: LabelSet) -> Label | None:
    """The label that a segment names, or else the first one with its codes."""
    found = labels.find(name)
    if found:
        return found
    concept = segment.SegmentedPropertyTypeCodeSequence[0]
    modifiers = concept.get("SegmentedPropertyTypeModifierCodeSequence") or []
    sides = [side for side, code in SIDES.items() if any(m.get("CodeValue") == code.value for m in modifiers)]
    wanted = (concept.get("CodeValue"), concept.get("CodingSchemeDesignator"), sides[0] if sides else None)
    coded = ((label.type.value, label.type.scheme, label.laterality) for label in labels.labels)
    return next((label for label, code in zip(labels.labels, coded, strict=True) if code == wanted), None)


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
    for source in (
        functional_group(dataset, number, "DerivationImageSequence").get("SourceImageSequence") or []
    ):
        frame = source.get("ReferencedFrameNumber") or 1
        yield str(source.get("ReferencedSOPInstanceUID")), int(np.atleast_1d(frame)[0])


def _place(
    frame: Frame,
    size: tuple[int, ...],
    volume: Volume,
    references: Iterable[tuple[str, int]],
    slices: Mapping[tuple[str, int], int],
) -> NDArray[np.int64]:
    """(3, 3) integers that take (column, row, 1) of a frame to the voxel (i, j, k)."""
    if frame.position and frame.orientation:
        affine = plane_affine(frame.position, frame.orientation, frame.spacing, np.zeros(3))
        exact = (np.linalg.inv(volume.affine) @ affine)[:3, [0, 1, 3]]
        whole = np.rint(exact).astype(np.int64)
        corners = np.array([[0, size[1] - 1, 0, size[1] - 1], [0, 0, size[0] - 1, size[0] - 1], [1, 1, 1, 1]])
        if np.abs((exact - whole) @ corners).max() > _OFF_GRID:
            raise LabelMismatchError(
                "the segmentation lies off the grid of the image; resample it to the image first"
            )
        return whole
    found = {slices[reference] for reference in references if reference in slices}
    if len(found) != 1 or size != volume.shape[1::-1]:
        raise LabelMismatchError("the segmentation does not say on which slice of the image it lies")
    return np.array([[1, 0, 0], [0, 1, 0], [0, 0, found.pop()]])


def _frame_count(dataset: Dataset) -> int:
    return int(dataset.get("NumberOfFrames") or 1)
