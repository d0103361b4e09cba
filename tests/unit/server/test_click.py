"""What clients send with a click becomes the same prompt, or a sentence."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsa.data.labels import load_labels
from medsa.errors import BadInputError
from medsa.server.click import MOST_POINTS, read_click, read_params

SHAPE = (40, 30, 20)
LABELS = load_labels("default")


def click(dimension=3, shape=SHAPE, **params):
    return read_click(params, shape, dimension, LABELS)


def test_what_ohif_sends_is_understood():
    found = click(
        foreground=[[1, 2, 3], [4, 5, 3]],
        background=[[9, 9, 3]],
        result_extension=".nrrd",
        result_dtype="uint8",
        result_compress=False,
        restore_label_idx=False,
    )
    np.testing.assert_array_equal(found.prompt.foreground, [[1, 2, 3], [4, 5, 3]])
    np.testing.assert_array_equal(found.prompt.background, [[9, 9, 3]])
    assert found.prompt.box is None
    assert (found.k, found.label, found.extension) == (None, "", ".nrrd")


def test_what_slicer_sends_is_understood():
    found = click(
        2,
        label="liver",
        foreground=[[1, 2, 3], [4, 5, 6]],
        background=[],
        roi=[30, 5, 2, 20, 9, -4],
        slice=6,
        reset_state=True,
        result_extension=".nrrd",
        result_dtype="uint8",
        client_id="user-1",
    )
    np.testing.assert_array_equal(found.prompt.foreground, [[4, 5, 6]])
    np.testing.assert_array_equal(found.prompt.box, [[5, 2, 6], [30, 20, 6]])
    assert (found.k, found.label, found.reset, found.client_id) == (6, "liver", True, "user-1")


def test_without_a_slice_the_last_foreground_point_says_which():
    found = click(2, foreground=[[1, 1, 3], [2, 2, 7]], background=[[3, 3, 3], [4, 4, 7]])
    assert found.k == 7
    np.testing.assert_array_equal(found.prompt.foreground, [[2, 2, 7]])
    np.testing.assert_array_equal(found.prompt.background, [[4, 4, 7]])


def test_lists_may_come_as_strings():
    found = click(2, foreground="[[1, 2, 3]]", background="[]", roi="", slice="3", reset_state="false")
    np.testing.assert_array_equal(found.prompt.foreground, [[1, 2, 3]])
    assert found.k == 3


def test_a_picture_takes_points_without_a_slice():
    found = click(2, shape=(40, 30, 1), foreground=[[5, 6]], box=[1, 2, 10, 12])
    np.testing.assert_array_equal(found.prompt.foreground, [[5, 6, 0]])
    np.testing.assert_array_equal(found.prompt.box, [[1, 2, 0], [10, 12, 0]])


@pytest.mark.parametrize("roi", [None, [], [0] * 6, [0.0] * 6, [3, 3, 0, 9, 0, 9]])
def test_a_region_that_was_not_drawn_is_none(roi):
    assert click(foreground=[[1, 2, 3]], roi=roi).prompt.box is None


@settings(deadline=None)
@given(
    st.lists(st.floats(-100, 100), min_size=6, max_size=6), st.lists(st.booleans(), min_size=3, max_size=3)
)
def test_the_order_within_a_pair_of_the_region_does_not_matter(roi, swaps):
    swapped = list(roi)
    for axis, swap in enumerate(swaps):
        if swap:
            swapped[2 * axis : 2 * axis + 2] = swapped[2 * axis : 2 * axis + 2][::-1]

    def outcome(value):
        try:
            box = click(foreground=[[1, 2, 3]], roi=value).prompt.box
        except BadInputError as error:
            return str(error)
        return None if box is None else box.tolist()

    assert outcome(roi) == outcome(swapped)


@settings(deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=6, max_size=6))
def test_a_region_is_cut_at_the_borders_of_the_image(roi):
    try:
        box = click(foreground=[[1, 2, 3]], roi=roi).prompt.box
    except BadInputError:
        return
    if box is not None:
        assert (box >= 0).all()
        assert (box <= np.array(SHAPE) - 1).all()


PARAMETERS = [
    *("foreground", "background", "roi", "box", "slice", "label", "window", "undo", "redo", "label_info"),
    *("start", "smallest", "largest_cc", "fill_holes", "zoom"),
]
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
JSON = LEAVES | st.lists(LEAVES, max_size=6) | st.lists(st.lists(LEAVES, max_size=4), max_size=3)


@settings(deadline=None)
@given(st.sampled_from(PARAMETERS), JSON, st.sampled_from((2, 3)))
def test_whatever_is_sent_gives_a_click_or_a_sentence(name, value, dimension):
    try:
        found = click(dimension, **{"foreground": [[1, 2, 3]], name: value})
    except BadInputError:
        return
    assert found.undo or found.redo or not found.prompt.empty


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({}, "no foreground point"),
        ({"foreground": []}, "no foreground point"),
        ({"background": [[1, 1, 1]]}, "no foreground point"),
        ({"foreground": [[1, 1, 1]], "slice": 5}, "on slice 5"),
        ({"foreground": [[40, 1, 1]]}, "outside"),
        ({"foreground": [[1, 1, -1]]}, "outside"),
        ({"foreground": [[float("nan"), 1, 1]]}, "finite"),
        ({"foreground": [[10**400, 1, 1]]}, "numbers"),
        ({"foreground": [[1, 2], [3, 4, 5]]}, "numbers"),
        ({"foreground": [["a", "b", "c"]]}, "numbers"),
        ({"foreground": {"x": 1}}, "numbers"),
        ({"foreground": "[[1,2"}, "JSON"),
        ({"foreground": [[1, 1, 1]] * (MOST_POINTS + 1)}, "too many"),
        ({"box": [[1, 1, 1], [1, 9, 1]]}, "no area"),
        ({"box": [1, 2, 3]}, "two corners"),
        ({"roi": [1, 2, 3]}, "six numbers"),
        ({"roi": [100, 200, 0, 9, 0, 9]}, "outside"),
        ({"foreground": [[1, 1, 1]], "slice": 20}, "0 to 19"),
        ({"foreground": [[1, 1, 1]], "label": "livre"}, "unknown label 'livre'"),
        ({"foreground": [[1, 1, 1]], "wibdow": "lung"}, "unknown parameter wibdow"),
        ({"foreground": [[1, 1, 1]], "result_extension": ".exe"}, ".nii.gz"),
        ({"foreground": [[1, 1, 1]], "undo": "perhaps"}, "undo"),
    ],
)
def test_what_cannot_be_used_is_refused_with_a_reason(params, says):
    with pytest.raises(BadInputError, match="(?i).*" + says.replace("(", r"\(")):
        click(2, **params)


@pytest.mark.parametrize("text", ["[1]", "null", "{", "'a'", "[" * 100_000, '{"a":' * 50_000, "1" * 5000])
def test_params_that_are_no_object_are_refused(text):
    with pytest.raises(BadInputError, match="JSON object"):
        read_params(text)


def test_empty_params_are_an_empty_object():
    assert read_params("") == read_params(None) == {}
    assert read_params(json.dumps({"slice": 1})) == {"slice": 1}
