"""The headers of a series, made fit to be repeated by a SEG of it: highdicom and the standard are strict."""

from __future__ import annotations

from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from pydicom.valuerep import validate_type_and_regex

from medsa.data.dicom import frames_of, header_of, is_film
from medsa.data.volume import Volume
from medsa.errors import LabelMismatchError

_PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
_STUDY = ("AccessionNumber", "StudyID", "StudyDate", "StudyTime")
_CHECKED = {"PatientBirthDate": "DA", "StudyDate": "DA", "StudyTime": "TM", "PatientAge": "AS"}


def repeatable_headers(volume: Volume) -> list[Dataset]:
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
    placed = all(next(frames_of(source)).position for source in sources)
    if is_film(sources[0]):
        raise LabelMismatchError(
            "the frames lie at one place or do not say where (a film or a sequence of pictures): a DICOM "
            "segmentation cannot tell them apart; save the label as NIfTI or NRRD"
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
