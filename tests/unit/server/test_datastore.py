"""The copies that a DICOMweb store keeps on this machine: few, and none of what the store has no more."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medsa.data.labels import load_labels
from medsa.data.volume import Volume
from medsa.server import copies
from medsa.server.datastore import DicomWebStore
from medsa.server.segs import Seg

SEG = Seg("2026-01-10T12:00:00.000000+00:00", "1.9.1", "1.2", "1", "1.9", ("liver",), True)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store of the series `store.listed`, each of one small volume with a label."""
    monkeypatch.setenv("MEDSA_CACHE", str(tmp_path))
    store = DicomWebStore("http://127.0.0.1:9/dicom-web", load_labels())
    store.listed = ["1.2", "1.3"]

    def search(_path, filters):
        wanted = filters.get("SeriesInstanceUID")
        return [series(uid) for uid in store.listed if wanted in (None, uid)]

    monkeypatch.setattr(store.web, "search", search)
    volume = Volume(np.zeros((4, 3, 2), np.int16, order="F"), np.eye(4))
    monkeypatch.setattr(store, "volume", lambda _image: volume)
    monkeypatch.setattr(store, "_final", lambda _label: SEG)
    monkeypatch.setattr(store, "_read", lambda _seg: (np.ones(volume.shape, np.uint8), {1: "liver"}))
    return store


def series(uid):
    one = Dataset()
    one.StudyInstanceUID, one.SeriesInstanceUID, one.Modality = "1", uid, "CT"
    one.NumberOfSeriesRelatedInstances = 2
    return one


def test_copies_of_a_series_that_the_store_has_no_more_go_some_hours_later(store):
    images = [Path(store.get_image_uri(uid)) for uid in store.listed]
    label = Path(store.get_label_uri("1.2", "final"))
    store.listed = ["1.3"]
    store.refresh()
    store.list_images()
    assert all(path.is_file() for path in (*images, label))
    for path in (*images, label):
        os.utime(path, (time.time() - copies.IN_USE - 60,) * 2)
    store.refresh()
    store.list_images()
    assert [path.is_file() for path in (*images, label)] == [False, True, False]


def test_a_copy_is_made_once(store):
    path = Path(store.get_image_uri("1.2"))
    made = path.stat().st_ino
    assert store.get_image_uri("1.2") == str(path)
    assert path.stat().st_ino == made
    assert store.get_label_uri("1.2", "final") == store.get_label_uri("1.2", "final")
