"""A DICOMweb store on a real Orthanc: it keeps what it is told and refuses what does not fit."""

import socket
import threading
import time
import zipfile
from pathlib import Path

import httpx
import nibabel
import numpy as np
import pydicom
import pytest
from monailabel.config import settings

from medsa.data.labels import load_labels
from medsa.data.seg import Algorithm, write_seg
from medsa.data.write import write_mask
from medsa.demo.studies import abdomen, stow
from medsa.errors import (
    BadInputError,
    LabelMismatchError,
    NotFoundError,
    StoreError,
    StoreUnavailableError,
    UnreadableImageError,
)
from medsa.server.datastore import DicomWebStore
from medsa.server.dicomweb import DicomWeb

FILTER = "MONAI_LABEL_DICOMWEB_SEARCH_FILTER"
LABELS = load_labels()
LIVER = {"name": "liver", "idx": LABELS.by_name("liver").index}


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


def test_every_image_modality_is_listed_and_segmentations_are_not(store, study, demo_brain, tmp_path):
    saved(store, study, tmp_path)
    images = store.list_images()
    assert {series_of(study), series_of(demo_brain)} <= set(images)
    segs = {str(one.SeriesInstanceUID) for one in store.web.search("series", {"Modality": "SEG"})}
    assert segs
    assert segs.isdisjoint(images)


def test_a_saved_label_is_seen_at_once_and_its_image_is_offered_no_more(store, study, tmp_path):
    image = series_of(study)
    before = store.status()
    assert image in store.get_unlabeled_images()
    saved(store, study, tmp_path)
    assert image in store.get_labeled_images()
    assert image not in store.get_unlabeled_images()
    assert store.status()["completed"] == before["completed"] + 1


def test_a_seg_reads_back_on_the_full_grid_as_it_was_saved(store, study, tmp_path):
    image = series_of(study)
    mask = drawn(store.volume(image), 2)
    saved(store, study, tmp_path, mask, label_info=[{"name": "spleen", "idx": 2}])
    read, names = store.newest_label(image)
    spleen = LABELS.by_name("spleen").index
    assert names == {spleen: "spleen"}
    assert np.array_equal(read, (mask > 0) * np.uint8(spleen))


def test_the_object_in_the_store_says_what_it_is(store, study, tmp_path):
    saved(store, study, tmp_path, model="medsa_2d", user="anna")
    newest = store._segs.newest()[series_of(study)]
    (seg,) = store.web.series(newest.study, newest.series)
    segment = seg.SegmentSequence[0]
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert (segment.SegmentAlgorithmType, segment.SegmentAlgorithmName) == ("SEMIAUTOMATIC", "medsa medsa_2d")
    assert seg.SegmentationType == "BINARY"
    assert str(seg.ContentCreatorName) == "anna"
    assert int(seg.NumberOfFrames) == 2


def test_the_newest_human_label_counts_once_and_a_models_own_output_never(store, study, orthanc, tmp_path):
    image = series_of(study)
    volume = store.volume(image)
    saved(store, study, tmp_path)
    newer = drawn(volume, slices=(6,))
    saved(store, study, tmp_path, newer)
    ours = write_seg(
        drawn(volume, 5, slices=(9,)), volume, LABELS, algorithm=Algorithm("other", "1"), tag="original"
    )
    others = write_seg(drawn(volume, 5, slices=(10,)), volume, LABELS, algorithm=Algorithm("other", "1"))
    others.SegmentSequence[0].SegmentAlgorithmType = "AUTOMATIC"
    stow(orthanc.dicomweb_url, [ours, others])
    store.refresh()
    assert store.get_labeled_images().count(image) == 1
    assert sum(pair["image"] == store.get_image_uri(image) for pair in store.datalist()) == 1
    read, _ = store.newest_label(image)
    assert np.array_equal(read > 0, newer > 0)


def test_only_an_original_leaves_the_image_unlabelled_and_the_store_untouched(store, study, tmp_path):
    image = series_of(study)
    assert saved(store, study, tmp_path, tag="original") == image
    assert image in store.get_unlabeled_images()
    assert store.get_labeled_images("original") == [image]
    assert nibabel.load(store.get_label_uri(image, "original")).shape == store.volume(image).shape
    assert store.get_label_info(image, "original")["label_info"] == [LIVER]
    assert store.get_labels_by_image_id(image) == {"original": image}
    store.remove_label(image, "original")
    with pytest.raises(NotFoundError, match="no label tagged 'original'"):
        store.get_label_uri(image, "original")


def test_training_pairs_lie_on_one_grid(store, study, tmp_path):
    saved(store, study, tmp_path)
    image, label = (
        nibabel.load(store.get_image_uri(series_of(study))),
        nibabel.load(store.get_label_uri(series_of(study), "final")),
    )
    assert image.shape == label.shape
    np.testing.assert_allclose(image.affine, label.affine)
    assert {"image": image.get_filename(), "label": label.get_filename()} in store.datalist()


def test_a_label_is_found_by_its_own_id_and_by_its_images(store, study, tmp_path):
    label = saved(store, study, tmp_path)
    assert store.get_label_uri(label, "final") == store.get_label_uri(series_of(study), "final")
    assert store.get_labels_by_image_id(series_of(study)) == {"final": label}
    assert store.get_label_info(label, "final")["label_info"] == [LIVER]


def test_a_label_off_the_grid_empty_or_of_an_unknown_name_is_refused_and_nothing_stored(
    store, study, tmp_path
):
    volume = store.volume(series_of(study))
    wrong = tmp_path / "wrong.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((5, 5, 5), np.uint8), np.eye(4)), wrong)
    with pytest.raises(LabelMismatchError, match=r"grid|voxels"):
        store.save_label(series_of(study), str(wrong), "final", {})
    nibabel.save(nibabel.Nifti1Image(np.zeros(volume.shape, np.uint8), volume.affine), wrong)
    with pytest.raises(LabelMismatchError, match="empty"):
        store.save_label(series_of(study), str(wrong), "final", {})
    with pytest.raises(BadInputError, match=r"unknown label 'wings'.*liver"):
        saved(store, study, tmp_path, label_info=[{"name": "wings", "idx": 1}])
    with pytest.raises(BadInputError, match="label_info must be a list"):
        saved(store, study, tmp_path, label_info=["liver"])
    with pytest.raises(BadInputError, match="two names to the value 1"):
        saved(store, study, tmp_path, label_info=[LIVER | {"idx": 1}, {"name": "spleen", "idx": 1}])
    with pytest.raises(LabelMismatchError, match="value 1, which label_info does not name"):
        saved(store, study, tmp_path, label_info=[{"name": "liver", "idx": 2}])
    store.refresh()
    assert series_of(study) not in store.get_labeled_images()


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


def test_nothing_is_deleted_from_the_store(store, study, tmp_path):
    label = saved(store, study, tmp_path)
    with pytest.raises(BadInputError, match="not removed"):
        store.remove_image(series_of(study))
    with pytest.raises(BadInputError, match="not removed"):
        store.remove_label(label, "final")


def test_a_segmentation_that_another_program_stored_is_the_label(store, study, orthanc):
    volume = store.volume(series_of(study))
    store.get_labeled_images()
    mask = drawn(volume, LIVER["idx"])
    stow(orthanc.dicomweb_url, [write_seg(mask, volume, LABELS, algorithm=None)])
    store.refresh()
    assert np.array_equal(store.newest_label(series_of(study))[0], mask)


def test_images_can_be_asked_for_by_the_labels_they_have(store, study, tmp_path):
    image = series_of(study)
    mask = drawn(store.volume(image), 1)
    mask[0:5, 0:5, 0] = 2
    saved(store, study, tmp_path, mask, label_info=[LIVER | {"idx": 2}, {"name": "spleen", "idx": 1}])
    assert image in store.get_labeled_images(labels=["Liver", "spleen"])
    assert image not in store.get_labeled_images(labels=["liver", "aorta"])
    assert image in store.get_unlabeled_images(labels=["aorta"])
    for odd in (5, [5], {"liver": 1}):
        with pytest.raises(BadInputError, match="list of names"):
            store.get_labeled_images(labels=odd)
    with pytest.raises(BadInputError, match="tag"):
        store.get_labeled_images(label_tag=5)


def test_without_a_list_of_names_values_are_indices_of_the_label_set(store, study, tmp_path):
    mask = drawn(store.volume(series_of(study)), LIVER["idx"])
    saved(store, study, tmp_path, mask, label_info=None)
    assert store.newest_label(series_of(study))[1] == {LIVER["idx"]: "liver"}
    mask[mask > 0] = 77
    with pytest.raises(BadInputError, match="no label has the value 77"):
        saved(store, study, tmp_path, mask, label_info=None)


def test_labels_of_two_clients_mean_the_same_in_the_training_pairs(store, study, tmp_path):
    for idx in (1, 7):
        mask = drawn(store.volume(series_of(study)), idx)
        saved(store, study, tmp_path, mask, label_info=[LIVER | {"idx": idx}])
        (pair,) = [one for one in store.datalist() if one["image"] == store.get_image_uri(series_of(study))]
        assert set(np.unique(nibabel.load(pair["label"]).get_fdata())) == {0, LIVER["idx"]}


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
    assert store.get_label_info(label, "final")["sum"] == int(drawn(store.volume(image)).sum()) * LIVER["idx"]


def test_a_label_that_the_store_does_not_give_back_is_not_saved(store, study, tmp_path, monkeypatch):
    def lost(*_uids):
        raise NotFoundError("gone")

    monkeypatch.setattr(store.web, "instance", lost)
    with pytest.raises(StoreError, match="does not give it back"):
        saved(store, study, tmp_path)


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


def test_words_of_a_client_cannot_break_the_object(store, study, tmp_path):
    label = saved(store, study, tmp_path, model="x\\y\n" + "é" * 100, user="a\\b" * 50)
    assert store.get_labels_by_image_id(series_of(study))["final"] == label
    saved(store, study, tmp_path, model=3, user=["x"])


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


def test_labels_saved_at_once_by_several_people_are_all_stored(store, study, tmp_path):
    labels: list[str] = []

    def save(number):
        place = tmp_path / str(number)
        place.mkdir()
        labels.append(saved(store, study, place, user=f"user{number}"))

    threads = [threading.Thread(target=save, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(set(labels)) == 3
    assert all(Path(store.get_label_uri(label, "final")).is_file() for label in labels)
