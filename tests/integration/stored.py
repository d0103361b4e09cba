"""What tests of a DICOMweb store begin with: a store, a study of their own in it, a label that is saved."""

import time

import numpy as np
import pydicom
import pytest

from medsa.data.labels import load_labels
from medsa.data.write import write_mask
from medsa.demo.studies import abdomen, stow
from medsa.server.datastore import DicomWebStore

LABELS = load_labels()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def store(orthanc):
    return DicomWebStore(orthanc.dicomweb_url, LABELS)


@pytest.fixture
def study(orthanc):
    """A study of this test's own, in the shared Orthanc."""
    made = abdomen((48, 40, 12), seed=int(time.monotonic_ns() % 2**31))
    fresh = {name: pydicom.uid.generate_uid() for name in ("StudyInstanceUID", "SeriesInstanceUID")}
    for dataset in made.datasets:
        for name, uid in fresh.items():
            setattr(dataset, name, uid)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    stow(orthanc.dicomweb_url, made.datasets)
    return made


def series_of(study):
    return str(study.datasets[0].SeriesInstanceUID)


def drawn(volume, value=1, slices=(3, 4)):
    mask = np.zeros(volume.shape, np.uint8, order="F")
    for k in slices:
        mask[10:20, 12:25, k] = value
    return mask


def saved(store, study, tmp_path, mask=None, tag="final", **info):
    image = series_of(study)
    path = tmp_path / "label.nrrd"
    write_mask(path, drawn(store.volume(image)) if mask is None else mask, store.volume(image))
    info.setdefault("label_info", [{"name": "liver", "idx": 1}])
    return store.save_label(image, str(path), tag, info)
