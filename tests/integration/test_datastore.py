"""A DICOMweb store on a real Orthanc: what it lists, keeps in memory and on disk, and does when it fails."""

import socket
import threading
import time
import zipfile

import httpx
import numpy as np
import pytest
from monailabel.config import settings
from tests.integration.stored import LABELS, drawn, own_cache, saved, series_of, store, study

from medsa.data.seg import write_seg
from medsa.demo.studies import abdomen, stow
from medsa.errors import (
    BadInputError,
    NotFoundError,
    StoreError,
    StoreUnavailableError,
    UnreadableImageError,
)
from medsa.server.datastore import DicomWebStore
from medsa.server.dicomweb import DicomWeb

__all__ = ["own_cache", "store", "study"]

FILTER = "MONAI_LABEL_DICOMWEB_SEARCH_FILTER"


def test_every_image_modality_is_listed_and_segmentations_are_not(store, study, demo_brain, tmp_path):
    saved(store, study, tmp_path)
    images = store.list_images()
    assert {series_of(study), series_of(demo_brain)} <= set(images)
    segs = {str(one.SeriesInstanceUID) for one in store.web.search("series", {"Modality": "SEG"})}
    assert segs
    assert segs.isdisjoint(images)


def test_a_restart_loses_nothing_that_was_saved(store, study, orthanc, tmp_path):
    saved(store, study, tmp_path)
    saved(store, study, tmp_path, tag="original")
    again = DicomWebStore(orthanc.dicomweb_url, LABELS)
    assert np.array_equal(again.newest_label(series_of(study))[0], store.newest_label(series_of(study))[0])
    assert again.get_label_uri(series_of(study), "original")


def test_orthanc_itself_restarted_has_it_still(new_orthanc, tmp_path):
    made = abdomen((32, 32, 6))
    first = new_orthanc()
    stow(first.dicomweb_url, made.datasets)
    saved(DicomWebStore(first.dicomweb_url, LABELS), made, tmp_path)
    first.stop()
    store = DicomWebStore(new_orthanc().dicomweb_url, LABELS)
    assert store.get_labeled_images() == [series_of(made)]


def test_files_in_the_cache_are_private_and_name_nobody(store, study, tmp_path):
    saved(store, study, tmp_path)
    saved(store, study, tmp_path, tag="original")
    store.datalist()
    files = [path for path in (tmp_path / "cache" / "dicomweb").rglob("*") if path.is_file()]
    assert files
    assert {path.stat().st_mode & 0o077 for path in files} == {0}
    patient = str(study.datasets[0].PatientID)
    assert not any(series_of(study) in str(path) or patient in str(path) for path in files)


@pytest.mark.parametrize("uid", ["../../etc/passwd", "1.2.3/../4", "", "abc", "1" * 65, "1.2%2f3"])
def test_what_is_no_uid_reaches_neither_the_store_nor_the_disk(store, uid):
    for ask in (store.volume, store.get_image_uri, store.get_image_info, store.get_labels_by_image_id):
        with pytest.raises(BadInputError, match="no DICOM UID"):
            ask(uid)
    with pytest.raises(BadInputError, match="no DICOM UID"):
        store.get_label_uri(uid, "final")
    with pytest.raises(BadInputError, match="no DICOM UID"):
        store.get_label_uri(uid, "../..")


def test_a_series_that_is_gone_or_is_no_image_is_said_to_be(store, study, tmp_path):
    with pytest.raises(NotFoundError, match="no image series"):
        store.volume("1.2.3.4.5")
    label = saved(store, study, tmp_path)
    with pytest.raises(NotFoundError, match="no image but SEG"):
        store.volume(label)


def test_two_that_ask_for_one_volume_fetch_it_once(store, study, monkeypatch):
    fetched = []
    fetch = store.web.series
    monkeypatch.setattr(store.web, "series", lambda *ids: fetched.append(ids) or fetch(*ids))
    got = []
    threads = [threading.Thread(target=lambda: got.append(store.volume(series_of(study)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(got) == 4
    assert len(fetched) == 1


def test_a_volume_in_memory_serves_on_while_the_store_is_away(new_orthanc):
    made = abdomen((32, 32, 6))
    server = new_orthanc()
    stow(server.dicomweb_url, made.datasets)
    store = DicomWebStore(server.dicomweb_url, LABELS)
    volume = store.volume(series_of(made))
    server.stop()
    store._answers.live = 0.0
    for store._answers.stale in (60.0, 0.0):
        assert store.volume(series_of(made)) is volume
        time.sleep(0.2)
        assert store.volume(series_of(made)) is volume
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        store.volume("1.2.3.4")


def test_a_store_that_never_answers_ends_in_a_sentence(monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_PROXY_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        web = DicomWeb(f"http://127.0.0.1:{deaf.getsockname()[1]}/dicom-web")
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            web.search("series")
        with pytest.raises(StoreUnavailableError, match="did not confirm in time"):
            web.store(abdomen((16, 16, 2)).datasets)


def test_all_who_wait_for_an_image_of_a_hanging_store_get_their_sentence_together(store, study, monkeypatch):
    asked, sentences, over = [], [], threading.Event()

    def hang(*uids):
        asked.append(uids)
        over.wait(60)
        raise StoreUnavailableError("the DICOMweb store does not answer: try again later")

    def client():
        with pytest.raises(StoreUnavailableError) as error:
            store.volume(series_of(study))
        sentences.append(str(error.value))

    monkeypatch.setattr(store.web, "series", hang)
    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    over.set()
    for thread in threads:
        thread.join(60)
    assert len(sentences) == 8
    assert len(asked) < 8


def test_a_wrong_address_is_said_to_be_one(orthanc):
    with pytest.raises(StoreError, match="is the URL of --studies right"):
        DicomWebStore(orthanc.dicomweb_url.replace("dicom-web", "nothing"), LABELS).list_images()


def test_monai_labels_own_scoring_works(store, study, tmp_path):
    from monailabel.tasks.scoring.dice import Dice
    from monailabel.tasks.scoring.sum import Sum

    image = series_of(study)
    saved(store, study, tmp_path, tag="original")
    label = saved(store, study, tmp_path)
    store.list_images = lambda: [image]
    Dice()({}, store)
    assert "dice" in store.get_image_info(image)
    Sum()({}, store)
    liver = LABELS.by_name("liver").index
    assert store.get_label_info(label, "final")["sum"] == int(drawn(store.volume(image)).sum()) * liver


def test_a_series_that_grows_or_goes_is_noticed(new_orthanc):
    made = abdomen((32, 32, 6))
    server = new_orthanc()
    stow(server.dicomweb_url, made.datasets[:4])
    store = DicomWebStore(server.dicomweb_url, LABELS)
    assert store.volume(series_of(made)).shape == (32, 32, 4)
    stow(server.dicomweb_url, made.datasets[4:])
    store.refresh()
    assert store.volume(series_of(made)).shape == (32, 32, 6)
    store._answers.live = 0.0
    (series,) = httpx.get(f"{server.url}/series").json()
    httpx.delete(f"{server.url}/series/{series}").raise_for_status()

    def ask_for_a_while():
        for _ in range(400):
            store.volume(series_of(made))
            time.sleep(0.05)

    with pytest.raises(NotFoundError, match="no image series"):
        ask_for_a_while()


def test_a_series_is_asked_about_in_the_background_while_clicks_go_on(store, study, monkeypatch):
    volume = store.volume(series_of(study))
    store._answers.live = 0.0
    over, asking = threading.Event(), []

    def hang(*_query):
        asking.append(threading.current_thread())
        over.wait(60)
        raise StoreUnavailableError("the DICOMweb store does not answer: try again later")

    monkeypatch.setattr(store.web, "search", hang)
    assert all(store.volume(series_of(study)) is volume for _ in range(20))
    over.set()
    assert threading.current_thread() not in asking


def test_the_users_search_filter_is_respected_and_the_stock_one_is_not(orthanc, monkeypatch, demo_brain):
    before = set(settings.model_fields_set)
    monkeypatch.setattr(settings, "__pydantic_fields_set__", before | {FILTER})
    monkeypatch.setattr(settings, FILTER, {"Modality": "MR"})
    images = DicomWebStore(orthanc.dicomweb_url, LABELS).list_images()
    assert images == [series_of(demo_brain)]


def test_the_cache_may_lie_elsewhere(orthanc, study, tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_DICOMWEB_CACHE_PATH", str(tmp_path / "elsewhere"))
    store = DicomWebStore(orthanc.dicomweb_url, LABELS)
    assert store.get_image_uri(series_of(study)).startswith(str(tmp_path / "elsewhere"))


def test_a_dicom_file_is_taken_in_and_nothing_else(store, study, tmp_path):
    made = abdomen((16, 16, 2), seed=int(time.monotonic_ns() % 2**31))
    path = tmp_path / "upload.dcm"
    made.datasets[0].save_as(path, enforce_file_format=True)
    assert store.add_image("", str(path), {}) == series_of(made)
    assert series_of(made) in store.list_images()
    path.write_bytes(b"no DICOM")
    with pytest.raises(UnreadableImageError, match="no DICOM object"):
        store.add_image("", str(path), {})
    volume = store.volume(series_of(study))
    write_seg(drawn(volume), volume, LABELS).save_as(path)
    with pytest.raises(UnreadableImageError, match="no image but SEG"):
        store.add_image("", str(path), {})
    with pytest.raises(BadInputError, match="send DICOM"):
        store.add_image("x", str(tmp_path / "x.nii.gz"), {})


def test_what_many_note_at_once_is_all_kept(store, study):
    image = series_of(study)
    threads = [
        threading.Thread(target=store.update_image_info, args=(image, {f"note {number}": np.float32(number)}))
        for number in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    info = store.get_image_info(image)
    assert [info[f"note {number}"] for number in range(8)] == [float(number) for number in range(8)]
    with pytest.raises(BadInputError, match="finite"):
        store.update_image_info(image, {"score": float("nan")})


def test_the_archive_holds_images_and_labels_of_nobody(store, study, tmp_path):
    saved(store, study, tmp_path)
    store.get_labeled_images = lambda *_: [series_of(study)]
    with zipfile.ZipFile(store.get_dataset_archive(None)) as archive:
        assert archive.namelist() == ["images/0001.nii.gz", "labels/0001.nii.gz"]
