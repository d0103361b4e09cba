"""Stand-in for pydicom-seg so that MONAI Label 0.8.5 imports beside pydicom 3.

MONAI Label imports this name at start and calls it only in two functions that medsa replaces
(`nifti_to_dicom_seg`, `dicom_seg_to_itk_image`). Anything that reaches for it all the same is told so.
"""

from typing import NoReturn


def __getattr__(name: str) -> NoReturn:
    raise AttributeError(f"pydicom_seg.{name} is not available: medsa reads and writes DICOM SEG with highdicom (medsa.data.seg)")
