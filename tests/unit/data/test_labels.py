"""Label sets: the files are sound, and names are found or explained."""

import pytest
from pydantic import ValidationError
from pydicom.sr._concepts_dict import concepts

from medsa.config import config_names
from medsa.data.labels import SIDES, LabelSet, load_labels
from medsa.errors import BadInputError, ConfigurationError

KNOWN = {(value, meaning) for entry in concepts["SCT"].values() for value, (meaning, _) in entry.items()}
TYPE = ["10200004", "SCT", "Liver"]


@pytest.mark.parametrize("name", config_names("labels"))
def test_every_set_loads_and_its_codes_are_those_of_dicom(name):
    labels = load_labels(name)
    codes = [code for label in labels.labels for code in (label.category, label.type)]
    unknown = [code for code in codes if (code.value, code.meaning) not in KNOWN]
    assert {(code.value, code.meaning) for code in unknown} <= {("74281007", "Myocardium")}
    assert all(code.scheme == "SCT" for code in codes)


@pytest.mark.parametrize("name", config_names("labels"))
def test_sides_are_coded_where_the_name_has_one_and_colours_differ(name):
    labels = load_labels(name).labels
    for label in labels:
        if label.laterality:
            assert label.name.startswith(label.laterality)
    assert len({label.color for label in labels}) == len(labels)
    assert all((code.value, code.meaning) in KNOWN for code in SIDES.values())


def test_names_are_found_without_regard_to_case():
    labels = load_labels()
    assert labels.by_name(" Liver ").type.value == "10200004"
    assert labels.by_index(labels.by_name("spleen").index).name == "spleen"
    assert labels.names[1] == "object"


def test_the_unknown_are_told_the_known():
    with pytest.raises(BadInputError, match=r"unknown label 'apex'.*'default'.*liver, spleen"):
        load_labels().by_name("apex")
    with pytest.raises(BadInputError, match=r"value 99.*5 liver"):
        load_labels().by_index(99)
    with pytest.raises(ConfigurationError, match="choose one of: abdomen"):
        load_labels("nowhere")


@pytest.mark.parametrize(
    "labels",
    [
        [],
        [{"index": 1, "name": "a", "color": [0, 0, 0], "type": TYPE}] * 2,
        [{"index": 0, "name": "a", "color": [0, 0, 0], "type": TYPE}],
        [{"index": 1, "name": "a", "color": [0, 0, 256], "type": TYPE}],
        [{"index": 1, "name": "a", "color": [0, 0, 0], "type": TYPE[:2]}],
        [{"index": 1, "name": "a", "color": [0, 0, 0], "type": TYPE, "side": "left"}],
    ],
)
def test_a_set_that_makes_no_sense_is_refused(labels):
    with pytest.raises(ValidationError):
        LabelSet.model_validate({"name": "x", "title": "x", "labels": labels})
