"""Labels that annotators add: named once, kept, and never in the way of the set's own."""

import numpy as np
import pytest

from medsa.data.labels import load_labels
from medsa.data.volume import Volume
from medsa.errors import BadInputError, ConfigurationError
from medsa.server.added_labels import FILE, add, with_added
from medsa.server.encode import cropped
from medsa.server.viewer import page_at

LABELS = load_labels("default")


def test_an_added_label_is_there_after_a_restart(tmp_path):
    added = add(LABELS, tmp_path, "  hepatic   cyst ").by_name("hepatic cyst")
    assert added.index == max(LABELS.names) + 1
    assert with_added(LABELS, tmp_path).by_name("Hepatic Cyst") == added
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_name_that_is_there_is_not_added_again(tmp_path):
    assert add(LABELS, tmp_path, "LIVER") == LABELS
    once = add(LABELS, tmp_path, "polyp")
    assert add(LABELS, tmp_path, "Polyp") == once


@pytest.mark.parametrize("name", ["", "   ", "x" * 65, "a\0b"])
def test_what_is_no_name_is_refused(name, tmp_path):
    with pytest.raises(BadInputError, match="1 to 64"):
        add(LABELS, tmp_path, name)


@pytest.mark.parametrize("name", ["liver\\cyst", "liver\x07", "liver\u200bcyst", "liver\ud800"])
def test_a_name_that_dicom_cannot_hold_is_refused_before_anything_is_kept(name, tmp_path):
    with pytest.raises(BadInputError, match="backslash"):
        add(LABELS, tmp_path, name)
    assert not (tmp_path / FILE).exists()


def test_a_set_that_grew_since_keeps_its_own_labels(tmp_path):
    grown = load_labels("default")
    smaller = grown.model_copy(update={"labels": grown.labels[:-1]})
    taken = add(smaller, tmp_path, "polyp").by_name("polyp").index
    assert taken == grown.labels[-1].index
    assert with_added(grown, tmp_path) == grown


def test_a_full_set_and_a_single_version_take_no_more(tmp_path):
    full = LABELS
    for index in range(max(LABELS.names) + 1, 256):
        label = LABELS.labels[0].model_copy(update={"name": f"label {index}", "index": index})
        full = full.model_copy(update={"labels": (*full.labels, label)})
    with pytest.raises(BadInputError, match="255"):
        add(full, tmp_path, "polyp")
    (tmp_path / "card.json").write_text("{}")
    with pytest.raises(BadInputError, match="one version"):
        add(LABELS, tmp_path, "polyp")


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / FILE).write_text("[{]")
    with pytest.raises(ConfigurationError, match=FILE):
        with_added(LABELS, tmp_path)


def test_a_cropped_mask_lies_where_it_lay():
    affine = np.array([[1, 0, 0, 5], [0, 2, 1, 6], [0, 0, 3, 7], [0, 0, 0, 1.0]])
    mask = np.zeros((4, 3, 6), np.uint8)
    mask[1, 2, 2] = mask[3, 0, 4] = 1
    part, first, volume = cropped(mask, Volume(np.zeros((4, 3, 6), np.float32), affine))
    assert (first, part.shape, volume.shape) == (2, (4, 3, 3), (4, 3, 3))
    np.testing.assert_allclose(volume.affine @ [1, 2, 0, 1], affine @ [1, 2, 2, 1])
    empty, first, _ = cropped(np.zeros((4, 3, 6), np.uint8), Volume(np.zeros((4, 3, 6), np.float32), affine))
    assert (first, empty.shape, empty.any()) == (0, (4, 3, 1), False)


@pytest.mark.parametrize(
    ("path", "up"), [("", "./"), ("medsa", "./"), ("medsa/dicomweb", "../"), ("a/b/c", "../../")]
)
def test_the_viewers_page_finds_its_parts_from_any_depth(path, up):
    assert page_at('<script src="/ohif/app.js">', path) == f'<script src="{up}app.js">'
