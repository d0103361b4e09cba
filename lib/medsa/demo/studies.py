"""Demo studies as DICOM series, made from what packages ship and from a drawing, with the truth if known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from medsa.data.phantom import draw_abdomen
from medsa.errors import StoreError
from medsa.server.dicomweb import DicomWeb

CT_IMAGE, MR_IMAGE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"


@dataclass(frozen=True, eq=False)
class DemoStudy:
    """One series of one fake patient: `datasets` in the order of k, `truth` name -> (I, J, K) bool."""

    name: str
    datasets: tuple[Dataset, ...] = field(repr=False)
    truth: Mapping[str, NDArray[np.bool_]] = field(repr=False, default_factory=dict)

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID: the image id by which the datastore knows it."""
        return str(self.datasets[0].SeriesInstanceUID)

    @property
    def study_uid(self) -> str:
        """StudyInstanceUID: what the viewer's address asks for."""
        return str(self.datasets[0].StudyInstanceUID)


def demo_studies() -> list[DemoStudy]:
    """All of them, as `make demo` shows them."""
    return [brain(), abdomen(), spine()]


def brain(resolution: int = 1) -> DemoStudy:
    """nilearn's packaged MNI152 T1 template as an axial MR series of `resolution` mm (1: 197 x 233 x 189).

    Truth: "brain" and in it "grey matter", "white matter" (tissue maps above one half).
    """
    from nilearn import datasets

    template = datasets.load_mni152_template(resolution=resolution)
    maps = {
        "brain": datasets.load_mni152_brain_mask(resolution=resolution),
        "grey matter": datasets.load_mni152_gm_template(resolution=resolution),
        "white matter": datasets.load_mni152_wm_template(resolution=resolution),
    }
    truth = {name: _to_dicom_axes(image.get_fdata()) > 0.5 for name, image in maps.items()}
    voxels = np.rint(_to_dicom_axes(template.get_fdata()) * 2000)
    i, j = template.shape[0] - 1, template.shape[1] - 1
    right, back, low = (template.affine @ [i, j, 0, 1])[:3]
    return DemoStudy(
        "brain",
        _series(
            "brain",
            str(resolution),
            voxels.astype(np.uint16),
            origin=(-right, -back, low),
            spacing=(resolution, resolution, resolution),
            modality="MR",
            body_part="BRAIN",
            description="MNI152 T1 template",
            window=(1000, 2000),
        ),
        truth,
    )


def abdomen(shape: tuple[int, int, int] = (256, 256, 60), seed: int = 0) -> DemoStudy:
    """A drawn abdominal CT of `shape` (I, J, K).

    Truth: "liver", "spleen", "stomach", "right kidney", "left kidney", "spine", "aorta".
    """
    hounsfield, truth, spacing = draw_abdomen(shape, seed)
    origin = (-(shape[0] - 1) / 2 * spacing[0], -(shape[1] - 1) / 2 * spacing[1], -900.0)
    return DemoStudy(
        "abdomen",
        _series(
            "abdomen",
            f"{shape}{seed}",
            (np.clip(hounsfield, -1024, 3071) + 1024).astype(np.uint16),
            origin=origin,
            spacing=spacing,
            modality="CT",
            body_part="ABDOMEN",
            description="Drawn abdomen",
            window=(40, 400),
        ),
        truth,
    )


def spine() -> DemoStudy:
    """pydicom's real CT slice (128 x 128, a thoracic vertebra) under a fake name; no truth."""
    path = get_testdata_file("CT_small.dcm", download=False)
    if not isinstance(path, str):
        raise StoreError("pydicom came without its CT_small.dcm; install pydicom from its wheel")
    dataset = pydicom.dcmread(path)
    dataset.remove_private_tags()
    for keyword in ("DataSetTrailingPadding", "PatientWeight"):
        dataset.pop(keyword, None)
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
        setattr(dataset, keyword, _uid("spine", keyword))
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.PatientName, dataset.PatientID = "DEMO^SPINE", "DEMO-SPINE"
    dataset.StudyDescription, dataset.SeriesDescription = "Demo spine", "A real CT slice from pydicom"
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    return DemoStudy("spine", (dataset,))


def stow(url: str, datasets: Iterable[Dataset], auth: tuple[str, str] | None = None) -> int:
    """Store `datasets` in the DICOMweb store at `url`; returns how many it confirmed, known ones included.

    Raises `StoreUnavailableError` when nobody answers, `StoreError` when an instance is refused.
    """
    return DicomWeb(url, auth).store(datasets)


def save(folder: Path, datasets: Iterable[Dataset]) -> None:
    """Write them as files into `folder`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for number, dataset in enumerate(datasets, start=1):
        dataset.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)


def _to_dicom_axes(array: NDArray) -> NDArray:
    """RAS+ axes to columns towards the patient's left, rows towards the back, slices towards the head."""
    return array[::-1, ::-1, :]


def _uid(*words: str) -> str:
    return str(generate_uid(entropy_srcs=["medsa", "demo", *words]))


def _series(
    name: str,
    variant: str,
    voxels: NDArray[np.uint16],
    *,
    origin: tuple[float, float, float],
    spacing: tuple[float, float, float],
    modality: str,
    body_part: str,
    description: str,
    window: tuple[int, int],
) -> tuple[Dataset, ...]:
    """One dataset a slice; voxels (I, J, K) of 12 bits, `origin` of voxel (0, 0, 0) in mm (LPS)."""
    slices = []
    for k in range(voxels.shape[2]):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID = CT_IMAGE if modality == "CT" else MR_IMAGE
        dataset.SOPInstanceUID = _uid(name, variant, "instance", str(k))
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        _describe(dataset, name, variant, modality)
        dataset.BodyPartExamined, dataset.SeriesDescription = body_part, description
        dataset.InstanceNumber = k + 1
        position = (origin[0], origin[1], origin[2] + k * spacing[2])
        dataset.ImagePositionPatient = [f"{value:.6g}" for value in position]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing = [f"{spacing[1]:.8g}", f"{spacing[0]:.8g}"]
        dataset.SliceThickness = f"{spacing[2]:.8g}"
        dataset.SliceLocation = f"{position[2]:.6g}"
        dataset.Rows, dataset.Columns = voxels.shape[1], voxels.shape[0]
        dataset.WindowCenter, dataset.WindowWidth = window
        dataset.PixelData = np.ascontiguousarray(voxels[:, :, k].T).astype("<u2").tobytes()
        slices.append(dataset)
    return tuple(slices)


def _describe(dataset: Dataset, name: str, variant: str, modality: str) -> None:
    """Patient, study, series, equipment and pixel modules: the same for every slice."""
    dataset.PatientName, dataset.PatientID = f"DEMO^{name.upper()}", f"DEMO-{name.upper()}"
    dataset.PatientBirthDate, dataset.PatientSex = "", "O"
    dataset.StudyInstanceUID = _uid(name, variant, "study")
    dataset.SeriesInstanceUID = _uid(name, variant, "series")
    dataset.FrameOfReferenceUID = _uid(name, variant, "frame")
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = "20240101"
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = "120000"
    dataset.AccessionNumber = dataset.ReferringPhysicianName = dataset.PositionReferenceIndicator = ""
    dataset.StudyDescription = f"Demo {name}"
    dataset.StudyID, dataset.SeriesNumber, dataset.AcquisitionNumber = "1", 1, 1
    dataset.Modality, dataset.PatientPosition, dataset.Manufacturer = modality, "HFS", "medsa"
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if modality == "CT" else "OTHER"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    if modality == "CT":
        dataset.KVP = "120"
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "-1024", "1", "HU"
    else:
        dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "GR", "SP", ""
        dataset.MRAcquisitionType, dataset.EchoTime, dataset.RepetitionTime = "3D", "3", "2300"
        dataset.EchoTrainLength = "1"
