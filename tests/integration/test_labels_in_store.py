"""Labels in a DICOMweb store on a real Orthanc: they come back as saved, and what does not fit is refused."""

import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest
from tests.integration.stored import LABELS, drawn, own_cache, saved, series_of, store, study

from medsa.data.seg import Algorithm, write_seg
from medsa.demo.studies import stow
from medsa.errors import BadInputError, LabelMismatchError, NotFoundError, StoreError

__all__ = ["own_cache", "store", "study"]

LIVER = {"name": "liver", "idx": LABELS.by_name("liver").index}


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


def test_a_label_that_the_store_does_not_give_back_is_not_saved(store, study, tmp_path, monkeypatch):
    def lost(*_uids):
        raise NotFoundError("gone")

    monkeypatch.setattr(store.web, "instance", lost)
    with pytest.raises(StoreError, match="does not give it back"):
        saved(store, study, tmp_path)


def test_words_of_a_client_cannot_break_the_object(store, study, tmp_path):
    label = saved(store, study, tmp_path, model="x\\y\n" + "é" * 100, user="a\\b" * 50)
    assert store.get_labels_by_image_id(series_of(study))["final"] == label
    saved(store, study, tmp_path, model=3, user=["x"])


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
