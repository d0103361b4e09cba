"""Options are right or refused with a sentence that names the choice."""

import pytest
from pydantic import BaseModel

from medsa import config
from medsa.errors import ConfigurationError


class Colour(BaseModel):
    name: str
    red: int


@pytest.fixture
def colours(tmp_path, monkeypatch):
    folder = tmp_path / "colours"
    folder.mkdir()
    (folder / "dark.yaml").write_text("red: 3\n")
    (folder / "wrong.yaml").write_text("red: many\n")
    monkeypatch.setattr(config, "CONFIGS", tmp_path)
    return folder


def test_a_file_becomes_a_typed_value_under_its_own_name(colours):
    assert config.config_names("colours") == ["dark", "wrong"]
    assert config.load_config("colours", "dark", Colour) == Colour(name="dark", red=3)


def test_an_unknown_name_lists_the_known_ones(colours):
    with pytest.raises(ConfigurationError, match=r"unknown colour '\.\./dark'; choose one of: dark, wrong"):
        config.load_config("colours", "../dark", Colour)


def test_a_wrong_value_names_file_and_field(colours):
    with pytest.raises(ConfigurationError, match=r"wrong\.yaml: red"):
        config.load_config("colours", "wrong", Colour)


@pytest.mark.parametrize(
    ("conf", "said"),
    [
        ({"backbon": "vit_b"}, "unknown option backbon; medsa knows: adapter, adapters, ahead, backbone"),
        ({"backbone": "vit_x"}, "unknown backbone 'vit_x'; choose one of"),
        ({"labels": "no_such"}, "unknown label set"),
        ({"method": "med_sb"}, "unknown method 'med_sb'; choose one of: decoder_only"),
        ({"adapters": "no/such"}, "there is no folder 'no/such'; make it"),
        ({"cache_mb": "much"}, "cache_mb"),
        ({"cache_mb": "1"}, "cache_mb"),
        ({"device": "toaster"}, "unknown device 'toaster'"),
        ({"device": "cuda:99"}, "is not there"),
    ],
)
def test_a_bad_option_is_refused_with_what_would_be_right(conf, said):
    with pytest.raises(ConfigurationError, match=said):
        config.Options.from_conf(conf)


def test_clients_do_not_see_where_on_this_machine_adapters_lie(tmp_path):
    (tmp_path / "site").mkdir()
    assert config.Options.from_conf({"adapters": str(tmp_path / "site")}).shown()["adapters"] == "site"
    assert config.Options.from_conf({}).shown()["adapters"] == ""


def test_what_cannot_be_made_again_lies_apart_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MEDSA_CACHE", "MEDSA_DATA", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert config.data_dir() == tmp_path / ".local" / "share" / "medsa"
    assert not config.data_dir().is_relative_to(config.cache_dir())
    assert config.data_dir().stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "shared"))
    assert config.data_dir() == tmp_path / "shared" / "medsa"
    monkeypatch.setenv("MEDSA_DATA", str(tmp_path / "own"))
    assert config.data_dir() == tmp_path / "own"
