"""Drawn DICOM series: small, of known geometry and values, without a patient."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

AXIAL = [1, 0, 0, 0, 1, 0]


def image(pixels: np.ndarray, **fields: Any) -> Dataset:
    """One DICOM image of `pixels` (rows, columns), (frames, rows, columns) or (rows, columns, 3)."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3", "1.2.3.4", "1.2.3.5"
    ds.Modality, ds.PatientName, ds.PatientID = "CT", "Drawn^Nobody", "none"
    ds.StudyDate, ds.StudyTime, ds.SeriesNumber, ds.PatientSex = "20240102", "101112", 3, "O"
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    if pixels.ndim == 3 and not colour:
        ds.NumberOfFrames = len(pixels)
    ds.Rows, ds.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in fields.items():
        setattr(ds, name, value)
    return ds


def series(
    voxels: np.ndarray, spacing: tuple = (2.0, 0.5, 0.7), origin: Any = (10, 20, 30), **fields: Any
) -> list:
    """Axial slices of `voxels` (slices, rows, columns); `spacing` mm between slices, rows, columns."""
    frame = {
        "ImageOrientationPatient": AXIAL,
        "PixelSpacing": list(spacing[1:]),
        "SliceThickness": spacing[0],
    }
    return [
        image(
            plane,
            **{**frame, "ImagePositionPatient": [origin[0], origin[1], origin[2] + k * spacing[0]], **fields},
        )
        for k, plane in enumerate(voxels)
    ]


def enhanced(voxels: np.ndarray, positions: list, **fields: Any) -> Dataset:
    """A multi-frame object whose frame n lies at `positions[n]`."""
    ds = image(voxels, SOPClassUID=EnhancedMRImageStorage, Modality="MR", **fields)
    shared, per_frame = Dataset(), []
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = AXIAL
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.7]
    shared.PixelMeasuresSequence[0].SliceThickness = 2.0
    for n, position in enumerate(positions):
        groups = Dataset()
        groups.PlanePositionSequence = [Dataset()]
        groups.PlanePositionSequence[0].ImagePositionPatient = list(position)
        groups.PixelValueTransformationSequence = [Dataset()]
        groups.PixelValueTransformationSequence[0].RescaleSlope = n + 1
        groups.PixelValueTransformationSequence[0].RescaleIntercept = -n
        per_frame.append(groups)
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], per_frame
    return ds


@pytest.fixture(scope="session")
def draw_image() -> Callable[..., Dataset]:
    return image


@pytest.fixture(scope="session")
def draw_series() -> Callable[..., list[Dataset]]:
    return series


@pytest.fixture(scope="session")
def draw_enhanced() -> Callable[..., Dataset]:
    return enhanced


@pytest.fixture(scope="session")
def noise() -> Callable[..., np.ndarray]:
    """Reproducible int16 voxels of a shape."""
    return lambda *shape, low=-1000, high=1000: (
        np.random.default_rng(7).integers(low, high, shape).astype(np.int16)
    )
