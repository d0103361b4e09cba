"""A patient's side is decided once and stays; nobody is named in the record."""

import json
import stat
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medsa.errors import ConfigurationError
from medsa.training.splits import Splits, patient_of

PATIENTS = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=30)
SHARES = st.floats(0, 1)


@settings(max_examples=30, deadline=None)
@given(rounds=st.lists(st.tuples(PATIENTS, SHARES, st.booleans()), min_size=1, max_size=4))
def test_a_side_once_given_never_changes_whatever_is_asked_later(tmp_path_factory, rounds):
    path, known = tmp_path_factory.mktemp("splits") / "splits.json", {}
    for patients, share, both in rounds:
        known = {**Splits(path, share, both_sides=both).assign(patients), **known}
        assert Splits(path, share).assign(known) == known


@settings(max_examples=30, deadline=None)
@given(batches=st.lists(PATIENTS, min_size=1, max_size=4), share=SHARES)
def test_two_patients_are_enough_for_both_sides(tmp_path_factory, batches, share):
    splits, known = Splits(tmp_path_factory.mktemp("splits") / "splits.json", share), {}
    for batch in batches:
        known |= splits.assign(batch)
        if len(known) >= 2:
            assert set(known.values()) == {"training", "validation"}


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_about_the_share_validates(tmp_path, share):
    sides = Splits(tmp_path / "s.json", share, both_sides=False).assign(map(str, range(600)))
    assert abs(list(sides.values()).count("validation") / 600 - share) < 0.07


def test_two_sites_split_the_same_patients_differently(tmp_path):
    patients = [str(n) for n in range(64)]
    assert Splits(tmp_path / "a.json").assign(patients) != Splits(tmp_path / "b.json").assign(patients)


def test_trials_split_the_same_patients_alike_and_still_name_nobody(tmp_path):
    patients = [str(n) for n in range(64)]
    one, other = (Splits(tmp_path / name, 0.25, alike=True) for name in ("a.json", "b.json"))
    assert one.assign(patients) == other.assign(reversed(patients))
    assert not set(json.loads(one.path.read_text())) & set(json.loads(other.path.read_text()))


def test_the_record_names_nobody_and_is_its_owners_alone(tmp_path):
    path = tmp_path / "new" / "splits.json"
    splits = Splits(path)
    splits.assign(["DOE^JANE", "4711"])
    assert "DOE" not in path.read_text()
    assert "4711" not in path.read_text()
    assert set(json.loads(path.read_text())) == {splits.hashed("DOE^JANE"), splits.hashed("4711")}
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_processes_at_once_lose_no_entry(tmp_path):
    script = (
        "import sys; from pathlib import Path; from medsa.training.splits import Splits;"
        "s = Splits(Path(sys.argv[1])); [s.side(f'{sys.argv[2]}-{n}') for n in range(40)]"
    )
    path = tmp_path / "splits.json"
    running = [subprocess.Popen([sys.executable, "-c", script, str(path), name]) for name in "abc"]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert len(json.loads(path.read_text())) == 120


def test_a_record_without_its_key_or_damaged_is_refused(tmp_path):
    path = tmp_path / "splits.json"
    Splits(path).assign(["a", "b"])
    path.with_name("splits.json.key").rename(tmp_path / "away")
    with pytest.raises(ConfigurationError, match="key"):
        Splits(path).side("a")
    (tmp_path / "away").rename(path.with_name("splits.json.key"))
    path.write_text('{"a": "both"}')
    with pytest.raises(ConfigurationError, match="damaged"):
        Splits(path).side("a")
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        Splits(path, 1.2)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("patient017_frame01", "patient017_frame09", True),
        ("patient017_frame01", "patient018_frame01", False),
        ("patient017", "patient017_frame09", True),
        ("sub-01_ses-1_T1w", "sub-01_ses-2_T1w", True),
        ("sub-01_T1w", "sub-011_T1w", False),
        ("hippocampus_001", "hippocampus_003", False),
        ("outpatient1_a", "outpatient1_b", False),
        ("patient_a", "patient_b", False),
    ],
)
def test_images_that_say_whose_they_are_stay_together(one, other, same):
    assert (patient_of(None, one) == patient_of(None, other)) is same


@given(name=st.text(min_size=1, max_size=20))
def test_an_image_of_another_name_is_a_patient_of_its_own(name):
    assert patient_of(None, f"x{name}") == f"image x{name}"
