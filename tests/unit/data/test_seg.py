"""DICOM SEG: written as the standard wants it, and back on the whole grid."""

import io
import shutil
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from medsa.data.dicom import volume_from_datasets
from medsa.data.labels import load_labels
from medsa.data.read import read_volume
from medsa.data.seg import Algorithm, read_seg, seg_series, write_seg
from medsa.errors import BadInputError, LabelMismatchError, UnreadableImageError

LABELS = load_labels("default")
MODEL = Algorithm("lite_medsam", "1.2")


def stored(dataset: Dataset) -> Dataset:
    """The object as it comes back from a file."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
    buffer.seek(0)
    return pydicom.dcmread(buffer)


@pytest.fixture(scope="module")
def volume(draw_series, noise):
    return volume_from_datasets(draw_series(noise(6, 5, 7)))


@pytest.fixture
def mask(volume):
    mask = np.zeros(volume.shape, np.uint8, order="F")
    mask[1:4, 1:3, 2] = 5
    mask[2:6, 2:5, 3:5] = 8
    return mask


@given(values=arrays(np.uint8, (7, 5, 6), elements=st.sampled_from([0, 0, 1, 5, 8, 19])))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_mask_comes_back_equal(volume, values):
    if not values.any():
        values[0, 0, 0] = 1
    back, names = read_seg(stored(write_seg(values, volume, LABELS)), volume, LABELS)
    assert np.array_equal(back, values)
    assert names == {value: LABELS.names[value] for value in np.unique(values[values > 0])}


def test_only_slices_with_a_segment_are_written_and_each_names_its_source(volume, mask):
    seg = write_seg(mask, volume, LABELS)
    assert seg.NumberOfFrames == 3
    assert seg.SegmentationType == "BINARY"
    sources = [
        item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        for item in seg.PerFrameFunctionalGroupsSequence
    ]
    assert set(sources) == {volume.headers[k].SOPInstanceUID for k in (2, 3, 4)}
    assert seg.FrameOfReferenceUID == volume.headers[0].FrameOfReferenceUID
    assert seg.StudyInstanceUID == volume.headers[0].StudyInstanceUID


def test_segments_carry_codes_side_colour_and_who_drew_them(volume, mask):
    first, second = write_seg(mask, volume, LABELS, algorithm=MODEL, author="Annotator^One").SegmentSequence
    assert (first.SegmentNumber, first.SegmentLabel) == (1, "liver")
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert first.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert first.SegmentAlgorithmType == "SEMIAUTOMATIC"
    identity = first.SegmentationAlgorithmIdentificationSequence[0]
    assert (identity.AlgorithmName, identity.AlgorithmVersion) == ("lite_medsam", "1.2")
    assert len(first.RecommendedDisplayCIELabValue) == 3
    kidney = second.SegmentedPropertyTypeCodeSequence[0]
    assert kidney.CodeMeaning == "Kidney"
    assert kidney.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"


def test_without_an_algorithm_the_segments_are_manual(volume, mask):
    seg = write_seg(mask, volume, LABELS, author="Annotator^One")
    assert [segment.SegmentAlgorithmType for segment in seg.SegmentSequence] == ["MANUAL", "MANUAL"]
    assert seg.ContentCreatorName == "Annotator^One"
    assert seg.SeriesDescription == "medsa: liver, left kidney"


def test_names_say_what_values_mean(volume):
    mask = np.zeros(volume.shape, np.uint8)
    mask[0, 0, 0], mask[1, 0, 0] = 1, 2
    seg = write_seg(mask, volume, LABELS, names={1: "Spleen", 2: "liver"})
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["spleen", "liver"]
    assert read_seg(seg, volume)[1] == {1: "spleen", 2: "liver"}
    back, names = read_seg(seg, volume, LABELS)
    assert back[0, 0, 0] == 6
    assert names == {6: "spleen", 5: "liver"}


def test_highdicom_reads_what_is_written(volume, mask):
    seg = highdicom.seg.Segmentation.from_dataset(stored(write_seg(mask, volume, LABELS)))
    frames = seg.get_pixels_by_source_instance(
        [header.SOPInstanceUID for header in volume.headers],
        combine_segments=True,
        assert_missing_frames_are_empty=True,
    )
    assert np.array_equal(frames.T, np.select([mask == 5, mask == 8], [1, 2]))


def test_a_multi_frame_source_is_referred_to_by_its_frames(draw_enhanced, noise):
    source = draw_enhanced(noise(3, 4, 9), [(0, 0, 4), (0, 0, 0), (0, 0, 2)])
    volume = volume_from_datasets([source])
    mask = np.zeros(volume.shape, np.uint8)
    mask[3:6, 1:3, 0], mask[0, 0, 2] = 1, 1
    seg = stored(write_seg(mask, volume, LABELS))
    frames = {
        item.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        for item in seg.PerFrameFunctionalGroupsSequence
    }
    assert frames == {2, 1}
    assert np.array_equal(read_seg(seg, volume)[0], mask)


def test_a_tilted_series_and_one_without_frame_of_reference(draw_series, noise):
    tilted = [1, 0, 0, 0, np.cos(0.2), -np.sin(0.2)]
    slices = draw_series(noise(4, 6, 5), ImageOrientationPatient=tilted)
    for ds in slices:
        del ds.FrameOfReferenceUID
    volume = volume_from_datasets(slices)
    mask = np.zeros(volume.shape, np.uint8)
    mask[1:3, 2:5, 1:3] = 1
    assert np.array_equal(read_seg(stored(write_seg(mask, volume, LABELS)), volume)[0], mask)


@pytest.mark.parametrize("name", ["examples_rgb_color.dcm", "examples_palette.dcm", "SC_rgb_small_odd.dcm"])
def test_a_single_picture_without_a_place_can_be_labelled(name):
    volume = read_volume(Path(get_testdata_file(name)))
    mask = np.zeros(volume.shape, np.uint8)
    mask[:2, 1:] = 1
    assert np.array_equal(read_seg(stored(write_seg(mask, volume, LABELS)), volume)[0], mask)


def test_later_segments_win_where_they_overlap(volume, mask):
    seg = stored(write_seg(mask, volume, LABELS))
    both = volume.shape
    planes = np.zeros((2, both[1], both[0]), np.uint8)
    planes[0, 1:4, 1:4], planes[1, 2:5, 2:5] = 1, 1
    seg.NumberOfFrames = 2
    groups = seg.PerFrameFunctionalGroupsSequence
    seg.PerFrameFunctionalGroupsSequence = [groups[2], groups[0]]
    seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence = groups[0].PlanePositionSequence
    seg.PixelData = np.packbits(planes.ravel(), bitorder="little").tobytes()
    back, names = read_seg(seg, volume)
    assert names == {1: "liver", 2: "left kidney"}
    assert back[3, 3, 2] == 2
    assert back[2:5, 2:5, 2].min() == 1 or back[1:4, 1:4, 2].max() == 2
    assert (back == 2).sum() == 9


def test_unknown_segments_get_values_above_the_label_set(volume, mask):
    seg = stored(write_seg(mask, volume, LABELS))
    seg.SegmentSequence[0].SegmentLabel = "Segment 1"
    seg.SegmentSequence[1].SegmentLabel = "something else"
    seg.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeValue = "1"
    back, names = read_seg(seg, volume, LABELS)
    assert names == {5: "liver", 20: "something else"}
    assert np.array_equal(back == 20, mask == 8)


def test_segments_of_one_generic_code_stay_apart(volume, mask):
    seg = stored(write_seg(mask, volume, LABELS, names={5: "object", 8: "object"}))
    for number, segment in enumerate(seg.SegmentSequence, start=1):
        segment.SegmentLabel = f"Segment {number}"
    assert read_seg(seg, volume, LABELS)[1] == {20: "Segment 1", 21: "Segment 2"}
    assert read_seg(seg, volume, load_labels("lesion"))[1] == {2: "Segment 1", 3: "Segment 2"}


def test_seg_series_tells_whose_it_is_who_made_it_and_when(volume, mask):
    before = datetime.now(UTC) - timedelta(seconds=1)
    human = seg_series(stored(write_seg(mask, volume, LABELS, algorithm=MODEL)))
    assert human.series == volume.uid
    assert human.human
    assert before < human.when < datetime.now(UTC) + timedelta(seconds=1)
    assert seg_series(write_seg(mask, volume, LABELS)).human
    assert not seg_series(write_seg(mask, volume, LABELS, algorithm=MODEL, tag="original")).human
    assert seg_series(Dataset()) == ("", False, datetime.min.replace(tzinfo=UTC))


@pytest.fixture
def berlin(monkeypatch):
    """A server one hour east of UTC."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def _dated(**fields):
    dataset = Dataset()
    dataset.ContentDate, dataset.ContentTime = "20260110", "120000"
    for name, value in fields.items():
        setattr(dataset, name, value)
    return dataset


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize(
    ("fields", "hour"),
    [
        ({"TimezoneOffsetFromUTC": "+0000"}, 12),
        ({"TimezoneOffsetFromUTC": "-0530"}, 17.5),
        ({"Manufacturer": "Unspecified", "ManufacturerModelName": "Unspecified"}, 12),  # OHIF
        ({"Manufacturer": "QIICR"}, 11),  # 3D Slicer
        ({"Manufacturer": "medsa"}, 11),  # earlier ones of ours
        ({"TimezoneOffsetFromUTC": "CET"}, 11),
        ({"TimezoneOffsetFromUTC": "+9900"}, 11),
    ],
)
def test_dates_of_different_time_zones_compare(fields, hour):
    assert seg_series(_dated(**fields)).when == datetime(2026, 1, 10, tzinfo=UTC) + timedelta(hours=hour)


def test_a_date_before_the_first_one_is_none():
    dataset = _dated(ContentDate="00010101", ContentTime="000000", TimezoneOffsetFromUTC="+0100")
    assert seg_series(dataset).when == datetime.min.replace(tzinfo=UTC)


@pytest.mark.usefixtures("berlin")
def test_dates_are_written_in_utc_and_say_so(volume, mask):
    before = datetime.now(UTC) - timedelta(seconds=1)
    seg = stored(write_seg(mask, volume, LABELS))
    assert seg.TimezoneOffsetFromUTC == "+0000"
    for kind in ("Content", "Series", "InstanceCreation"):
        written = datetime.strptime(
            f"{seg[f'{kind}Date'].value} {seg[f'{kind}Time'].value}", "%Y%m%d %H%M%S.%f"
        )
        assert before < written.replace(tzinfo=UTC) < datetime.now(UTC) + timedelta(seconds=1)
    assert (seg.StudyDate, seg.StudyTime) == ("20240102", "101112")


def test_dates_are_in_the_time_zone_of_the_image_where_it_names_one(draw_series, noise):
    volume = volume_from_datasets(draw_series(noise(2, 3, 3), TimezoneOffsetFromUTC="+0530"))
    seg = stored(write_seg(np.ones(volume.shape, np.uint8), volume, LABELS))
    assert (seg.TimezoneOffsetFromUTC, seg.StudyTime) == ("+0530", "101112")
    assert abs(seg_series(seg).when - datetime.now(UTC)) < timedelta(seconds=5)


def _no_study(slices):
    for ds in slices:
        del ds.StudyInstanceUID


def _no_series(slices):
    for ds in slices:
        ds.SeriesInstanceUID = ""


@pytest.mark.parametrize(
    ("spoil", "reason"), [(_no_study, "StudyInstanceUID"), (_no_series, "SeriesInstanceUID")]
)
def test_a_series_that_cannot_be_referred_to_is_refused(draw_series, noise, spoil, reason):
    slices = draw_series(noise(2, 3, 3))
    spoil(slices)
    volume = volume_from_datasets(slices)
    with pytest.raises(LabelMismatchError, match=reason):
        write_seg(np.ones(volume.shape, np.uint8), volume, LABELS)


@pytest.mark.parametrize("places", [None, [(1, 2, 3)] * 3])
def test_a_film_is_refused(draw_image, draw_enhanced, noise, places):
    film = draw_enhanced(noise(3, 4, 4), places) if places else draw_image(noise(3, 4, 4))
    volume = volume_from_datasets([film])
    assert volume.shape == (4, 4, 3)
    with pytest.raises(LabelMismatchError, match="do not say where"):
        write_seg(np.ones(volume.shape, np.uint8), volume, LABELS)


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        (lambda m: m[:-1], LabelMismatchError, "another grid"),
        (np.zeros_like, LabelMismatchError, "empty"),
        (lambda m: m * 0.3, LabelMismatchError, "whole numbers"),
        (lambda m: m.astype(int) * 100, LabelMismatchError, "whole numbers"),
        (lambda m: -m.astype(int), LabelMismatchError, "whole numbers"),
        (lambda m: np.where(m, 200, 0), BadInputError, "value 200"),
    ],
)
def test_masks_that_do_not_fit_are_refused(volume, mask, change, error, reason):
    with pytest.raises(error, match=reason):
        write_seg(change(mask), volume, LABELS)


def test_unknown_names_are_refused_with_the_known(volume, mask):
    with pytest.raises(BadInputError, match="unknown label 'apex'"):
        write_seg(mask, volume, LABELS, names={5: "apex", 8: "liver"})


def test_segs_that_do_not_fit_are_refused(volume, mask, draw_series, noise):
    seg = stored(write_seg(mask, volume, LABELS))
    elsewhere = volume_from_datasets(
        draw_series(noise(6, 5, 7), SeriesInstanceUID="1.9", FrameOfReferenceUID="1.8")
    )
    with pytest.raises(LabelMismatchError, match="another series"):
        read_seg(seg, elsewhere)
    shifted = volume_from_datasets(draw_series(noise(6, 5, 7), origin=(10.35, 20, 30)))
    with pytest.raises(LabelMismatchError, match="off the grid"):
        read_seg(seg, shifted)
    coarser = volume_from_datasets(draw_series(noise(6, 5, 7), spacing=(2, 0.25, 0.35)))
    with pytest.raises(LabelMismatchError, match="off the grid"):
        read_seg(seg, coarser)
    shorter = volume_from_datasets(draw_series(noise(6, 5, 7))[:3])
    with pytest.raises(LabelMismatchError, match="beyond the image"):
        read_seg(seg, shorter)
    with pytest.raises(LabelMismatchError, match="not a segmentation"):
        read_seg(draw_series(noise(1, 5, 7))[0], volume)


def test_a_neighbouring_series_of_the_same_grid_may_share_a_seg(volume, mask, draw_series, noise):
    other = volume_from_datasets(draw_series(noise(6, 5, 7), SeriesInstanceUID="1.9"))
    assert np.array_equal(read_seg(write_seg(mask, volume, LABELS), other, LABELS)[0], mask)


def test_empty_and_damaged_segs_are_refused(volume, mask):
    empty = stored(write_seg(mask, volume, LABELS))
    empty.PixelData = bytes(len(empty.PixelData))
    with pytest.raises(LabelMismatchError, match="empty"):
        read_seg(empty, volume)
    cut = stored(write_seg(mask, volume, LABELS))
    cut.PixelData = cut.PixelData[:4]
    with pytest.raises(UnreadableImageError, match="damaged"):
        read_seg(cut, volume)
    headless = stored(write_seg(mask, volume, LABELS))
    del headless.PerFrameFunctionalGroupsSequence
    with pytest.raises(UnreadableImageError, match="damaged"):
        read_seg(headless, volume)


def test_a_damaged_patient_field_is_left_empty_and_quoted_nowhere(draw_series, noise, caplog, recwarn):
    spoiled = {
        "PatientBirthDate": "Doe^Jane",
        "PatientAge": "Doe^Jane",
        "PatientSex": "Doe",
        "PatientName": "Doe",
    }
    volume = volume_from_datasets(draw_series(noise(2, 3, 3), **spoiled))
    seg = write_seg(np.ones(volume.shape, np.uint8), volume, LABELS, author="Doe")
    assert seg.PatientName == volume.headers[0].PatientName == "Doe"
    assert volume.headers[0].PatientSex == "Doe"
    assert not seg.PatientBirthDate
    assert not seg.PatientSex
    assert "Doe" not in caplog.text
    assert not any("Doe" in str(warning.message) for warning in recwarn)


@pytest.mark.parametrize(
    "source",
    [
        "series",
        "enhanced",
        "CT_small.dcm",
        "MR_small.dcm",
        "examples_rgb_color.dcm",
        "J2K_pixelrep_mismatch.dcm",
    ],
)
def test_the_validator_finds_no_error(tmp_path, volume, draw_enhanced, noise, source):
    validator = shutil.which("dciodvfy")
    if validator is None:
        pytest.skip("dciodvfy is not installed (apt install dicom3tools)")
    if source.endswith(".dcm"):
        volume = read_volume(Path(get_testdata_file(source)))
    elif source == "enhanced":
        volume = volume_from_datasets([draw_enhanced(noise(3, 4, 9), [(0, 0, 4), (0, 0, 0), (0, 0, 2)])])
    mask = np.zeros(volume.shape, np.uint8)
    mask[1:3, 1:3], mask[3:, 3:] = 8, 19
    for number, algorithm in enumerate((MODEL, None)):
        path = tmp_path / f"{number}.dcm"
        write_seg(mask, volume, LABELS, algorithm=algorithm, author="Annotator^One").save_as(path)
        report = subprocess.run([validator, "-new", path], capture_output=True, text=True, check=False).stderr
        assert [line for line in report.splitlines() if line.startswith("Error")] == []
