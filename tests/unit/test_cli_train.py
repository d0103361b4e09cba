"""`medsa train` on files: a version at the end, a sentence for what is wrong, a checkpoint after Ctrl-C."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsa.adapters.state import read_card
from medsa.cli import main
from medsa.sam import build_sam
from medsa.training.scenes import draw_scene


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four drawn fundus pictures with their disc."""
    data = tmp_path / "data"
    for name in ("images", "labels"):
        (data / name).mkdir(parents=True)
    for n in range(4):
        scene = draw_scene(np.random.default_rng(n), "fundus")
        Image.fromarray(scene.pixels).save(data / "images" / f"Jane Roe {n}.png")
        Image.fromarray(scene.objects["disc"].astype(np.uint8) * 255).save(
            data / "labels" / f"Jane Roe {n}.png"
        )
    return data


def test_a_folder_becomes_a_version_that_names_nobody(folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert main(["train", str(folder), "--epochs", "1", "--share", "0.4", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "Dice on held-out patients" in printed.out
    assert "after" in printed.out
    card = read_card(out / "candidate")
    assert len(card.studies["training"]) + len(card.studies["validation"]) == 4
    everything = b"".join(
        path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and folder not in path.parents
    )
    assert b"Jane" not in everything
    assert "Jane" not in printed.out + printed.err
    assert not (out / "embeddings").exists()


def test_a_method_without_prompts_learns_what_the_command_names_and_says_how_well(
    folder: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("medsa.sam.load_sam", lambda name, **_: build_sam(name, image_size=64))
    out = tmp_path / "run"
    words = ["train", str(folder), "--method", "ma_sam", "--steps", "1", "--share", "0.4", "--out", str(out)]
    assert main([*words, "--settings", "short", "--labels", "1=optic disc"]) == 0
    assert "no prompt" in capsys.readouterr().out
    card = read_card(out / "candidate")
    assert (card.labels, card.trained_prompts) == (("optic disc",), ())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--minutes", "-1"], "--minutes must be above 0"),
        (["--epochs", "1", "--share", "1"], "--share lies between 0 and 1"),
        (["--epochs", "1", "--labels", "liver"], "no label is called 'liver'"),
        (["--epochs", "1", "--method", "nonsense"], "choose one of"),
        (["--epochs", "1", "--settings", "nonsense"], "choose one of"),
        (["--epochs", "1", "--window", "nonsense"], "unknown window"),
        (["--epochs", "1", "--backbone", "nonsense"], "choose one of"),
        (["--epochs", "1", "--dataset", "nonsense"], "unknown data set 'nonsense'; there are: amos22_ct"),
        (
            ["--epochs", "1", "--dataset", "btcv"],
            "expected img/img<case>.nii.gz with label/label<case>.nii.gz",
        ),
        (["--epochs", "1", "--split", "test"], "--split is for a --dataset"),
        (["--epochs", "1", "--resume"], "no checkpoint"),
        (["--epochs", "1", "--from", "nowhere"], "no adapter version"),
    ],
)
def test_bad_input_is_one_sentence(
    folder: Path, tmp_path: Path, capsys, options: list[str], said: str
) -> None:
    assert main(["train", str(folder), "--out", str(tmp_path / "run"), *options]) == 2
    assert said in capsys.readouterr().err


def test_ctrl_c_keeps_the_checkpoint_and_says_how_to_go_on(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "medsa.cli", "train", str(folder), "--minutes", "5", "--out", str(out)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    for _ in range(1200):
        if (out / "history.csv").is_file() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume goes on" in said
    assert (out / "checkpoint" / "state.safetensors").is_file()
