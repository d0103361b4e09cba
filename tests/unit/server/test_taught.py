"""`medsa_auto` with an adapter that segments by itself: used for what it was taught, and no more."""

from pathlib import Path

import numpy as np
import pytest
from tests.unit.adapters.conftest import one_thread, small_sam
from tests.unit.training.test_train import CASES, PLAIN

from medsa.adapters.state import newest_promptless
from medsa.config import Options
from medsa.data.labels import load_labels
from medsa.data.write import write_image
from medsa.errors import BadInputError
from medsa.server.automatic import Automatic
from medsa.server.folder import FolderStore
from medsa.server.tasks import Runtime
from medsa.training.classes import train_classes
from medsa.training.length import Length
from medsa.training.train import Request

__all__ = ["one_thread"]

LABELS = load_labels()


@pytest.fixture(params=["ma_sam", "unet"])
def automatic(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Automatic:
    """Of a site with one image, no label, and an adapter that was taught liver and spleen."""
    monkeypatch.setenv("MEDSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("medsa.server.tasks.load_sam", lambda *_, **__: small_sam("tiny_vit"))
    settings = PLAIN.model_copy(update={"adapter_rate": 1e-2, "ema": 0.5})
    wanted = Request(request.param, {1: "liver", 2: "spleen"}, Length(steps=60), settings, measured=0)
    done = train_classes(small_sam("tiny_vit"), CASES[:3], [], tmp_path / "run", wanted)
    for name in ("adapters", "images"):
        (tmp_path / name).mkdir()
    done.candidate.rename(tmp_path / "adapters" / "organs")
    write_image(tmp_path / "images" / "scan.nii.gz", CASES[3].read()[0])
    options = Options(adapters=str(tmp_path / "adapters"), adapter="none")
    return Automatic(
        Runtime(options), FolderStore(str(tmp_path / "images"), LABELS), str(tmp_path / "images")
    )


def test_what_an_adapter_was_taught_is_found_by_it_without_a_labelled_study(
    automatic: Automatic, tmp_path: Path
) -> None:
    volume, truth, _ = CASES[3].read()
    automatic.check(["liver"])
    one = automatic.segment(volume, "scan", ["liver"])
    both = automatic.segment(volume, "scan")
    liver, spleen = (LABELS.by_name(name).index for name in ("liver", "spleen"))
    assert set(np.unique(one.mask)) == {0, liver}
    assert one.adapter == both.adapter == "organs"
    assert set(both.confidences) == {"liver", "spleen"}
    assert 0.3 < both.confidences["liver"] <= 1
    assert ((both.mask == liver) & (truth == 1)).sum() > 0.5 * (truth == 1).sum()
    assert ((both.mask == spleen) & (truth == 2)).sum() > 0.5 * (truth == 2).sum()
    with pytest.raises(BadInputError, match="no other labelled study of 'pancreas'"):
        automatic.segment(volume, "scan", ["liver", "pancreas"])
    with pytest.raises(BadInputError, match="pancreas"):
        automatic.check(["pancreas"])
    assert automatic.taught() == tmp_path / "adapters" / "organs"
    assert newest_promptless(tmp_path / "images") is None
