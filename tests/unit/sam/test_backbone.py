import pytest
import torch
from pydantic import ValidationError

from medsa.config import config_names
from medsa.errors import ConfigurationError
from medsa.sam import Backbone, Sam, backbone_table, read_backbone

NAMES = ["lite_medsam", "medsam", "vit_b", "vit_h", "vit_l", "vit_t"]


def test_the_six_backbones_are_there():
    assert config_names("backbones") == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_stated_number_of_parameters_is_the_models(name):
    backbone = read_backbone(name)
    with torch.device("meta"):
        sam = Sam(backbone)
    assert sum(parameter.numel() for parameter in sam.parameters()) == backbone.parameters


@pytest.mark.parametrize("name", NAMES)
def test_the_embedding_of_every_backbone_has_64_cells_a_side(name):
    assert read_backbone(name).embedding_size() == 64


def test_an_input_size_off_the_16_grid_is_refused():
    with pytest.raises(ConfigurationError, match="multiple of 16, not 250"):
        read_backbone("vit_b").embedding_size(250)


def test_an_unknown_backbone_is_refused_with_the_known_names():
    with pytest.raises(ConfigurationError, match="lite_medsam, medsam, vit_b"):
        read_backbone("vit_g")


def test_weights_from_the_network_need_a_pinned_hash(small):
    data = small().model_dump()
    data["weights"]["url"] = "https://example.org/x.pth"
    with pytest.raises(ValidationError, match="sha256"):
        Backbone.model_validate(data)


def test_the_table_says_where_the_weights_are(cache):
    rows = {row["name"]: row for row in backbone_table()}
    assert list(rows) == NAMES
    assert rows["lite_medsam"]["weights"].endswith("lite_medsam.pth")
    assert "https://dl.fbaipublicfiles.com/segment_anything/" in rows["vit_h"]["weights"]
    assert f"put medsam_vit_b.pth into {cache / 'weights'}" in rows["medsam"]["weights"]
    assert rows["vit_h"]["parameters"] == "641.1 M"
