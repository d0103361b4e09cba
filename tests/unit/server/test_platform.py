"""What medsa needs of MONAI Label is there, and its absence is told by name."""

import nibabel
import numpy as np
import pytest

from medsa.config import Options
from medsa.errors import ConfigurationError
from medsa.server import platform
from medsa.server.platform import Symbol
from medsa.server.tasks import ClickTask, Runtime


def test_the_installed_monai_label_has_everything():
    platform.check(platform.RELIED_ON + platform.RELIED_ON_WHEN_SERVING)


def test_what_has_moved_is_named():
    moved = (
        Symbol("monailabel.interfaces.app", "MONAILabelApp.info", "there"),
        Symbol("monailabel.interfaces.app", "MONAILabelApp.gone", "we replace it"),
        Symbol("monailabel.no_such_module", "thing", "we call it"),
    )
    with pytest.raises(ConfigurationError) as error:
        platform.check(moved)
    assert "MONAILabelApp.gone (we replace it)" in str(error.value)
    assert "no_such_module" in str(error.value)
    assert "info" not in str(error.value)


def test_every_method_that_is_overridden_is_on_the_list():
    from monailabel.interfaces.app import MONAILabelApp

    from medsa.server.app import MedsaApp

    overridden = {name for name in vars(MedsaApp) if name in vars(MONAILabelApp)} - {
        "__init__",
        "__module__",
        "__doc__",
    }
    listed = {symbol.attribute.removeprefix("MONAILabelApp.") for symbol in platform.RELIED_ON}
    assert overridden <= listed


def test_monai_label_itself_can_call_a_model(tmp_path):
    """Through `MONAILabelApp.infer` a task gets a path and gives one."""
    image = np.zeros((40, 30, 3), np.int16)
    image[10:20, 8:18] = 200
    nibabel.save(nibabel.Nifti1Image(image, np.diag([-1.0, -1, 2, 1])), tmp_path / "a.nii.gz")
    task = ClickTask(Runtime(Options(device="cpu")), 2)
    request = {"image": str(tmp_path / "a.nii.gz"), "model": "medsa_2d", "roi": [9, 20, 7, 18, 1, 1]}
    path, params = task({**request, "result_extension": ".nii.gz"})
    assert nibabel.load(path).shape == image.shape
    assert params["slices"] == [1]
