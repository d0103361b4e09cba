"""Pre-annotation: what nobody has looked at is kept apart, safe study by study, and done once."""

import json
import threading
from itertools import islice

import numpy as np
import pytest
import torch

from medsa.config import Options
from medsa.data.phantom import FAT, NOISE, draw_abdomen
from medsa.data.read_label import read_label
from medsa.data.volume import Volume
from medsa.data.write import write_image
from medsa.errors import BadInputError, CancelledError
from medsa.evaluation import dice
from medsa.sam import build_sam
from medsa.server.automatic import Automatic, AutomaticTask
from medsa.server.batch import ORIGINAL, Batch, Wanted, annotate, waiting
from medsa.server.folder import FolderStore
from medsa.server.store import FINAL
from medsa.server.tasks import Runtime
from medsa.server.train import labelled
from medsa.training.retrain import BusyError

SHAPE = (48, 48, 6)
WANTED = Wanted(("liver",))


def draw(seed: int) -> tuple[Volume, dict[str, np.ndarray]]:
    values, truth, spacing = draw_abdomen(SHAPE, seed)
    return Volume(values, np.diag([-spacing[0], -spacing[1], spacing[2], 1.0]), "CT"), truth


@pytest.fixture(scope="module")
def sam():
    torch.manual_seed(0)
    return build_sam("lite_medsam", image_size=64)


@pytest.fixture
def automatic(tmp_path, monkeypatch, sam) -> Automatic:
    """A folder of five drawn studies: "a" and "b" are labelled, "e" has no liver."""
    monkeypatch.setenv("MEDSA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDSA_DATA", str(tmp_path / "data"))
    monkeypatch.setattr("medsa.server.tasks.load_sam", lambda *_, **__: sam)
    runtime = Runtime(Options.from_conf({"device": "cpu", "adapter": "none", "window": "soft-tissue"}))
    folder = tmp_path / "studies"
    folder.mkdir()
    store = FolderStore(str(folder), runtime.labels)
    for seed, name in enumerate("abcde", start=1):
        volume, truth = draw(seed)
        if name == "e":
            liver = truth["liver"]
            volume.voxels[liver] = np.random.default_rng(0).normal(FAT, NOISE, int(liver.sum()))
        write_image(folder / f"{name}.nii.gz", volume)
        if name in "ab":
            save(store, name, truth)
    return Automatic(runtime, store, str(folder))


def save(store: FolderStore, image: str, truth: dict[str, np.ndarray], *names: str) -> None:
    """As a person does."""
    mask = np.zeros(SHAPE, np.uint8, order="F")
    kept = {}
    for name in names or ("liver", "spleen"):
        index = store.labels.by_name(name).index
        mask[truth[name]] = index
        kept[index] = name
    store.save_mask(image, mask, kept, FINAL, {})


def original(store: FolderStore, image: str, name: str) -> np.ndarray:
    path = store.folder / "labels" / ORIGINAL / f"{image}.nii.gz"
    return read_label(path, store.volume(image), store.labels) == store.labels.by_name(name).index


def test_every_study_without_a_label_gets_one_that_is_nobody_s(automatic) -> None:
    store = automatic.examples.store
    human, states = store.get_labeled_images(), store.label_states()
    found = {one.image: one for one in annotate(store, automatic, waiting(store, WANTED), WANTED)}
    assert list(found) == ["c", "d", "e"]
    for seed, image in ((3, "c"), (4, "d")):
        assert dice(original(store, image, "liver"), draw(seed)[1]["liver"]) > 0.7
        assert store.get_label_info(image, ORIGINAL)["confidences"]["liver"] == found[image].confidence > 0.3
    assert found["e"].confidence == 0
    assert ORIGINAL not in store.get_labels_by_image_id("e")

    assert (store.get_labeled_images(), store.label_states()) == (human, states)
    assert store.status()["completed"] == 2
    assert [case.id for case in labelled(store)] == ["a", "b"]
    assert store.newest_label("c") is None
    assert {pair["image"].rsplit("/")[-1] for pair in store.datalist()} == {"a.nii.gz", "b.nii.gz"}
    assert set(store.get_unlabeled_images()) == {"c", "d", "e"}


def test_a_run_that_was_ended_goes_on_where_it_was(automatic) -> None:
    store = automatic.examples.store
    run = annotate(store, automatic, waiting(store, WANTED), WANTED)
    assert [one.image for one in islice(run, 1)] == ["c"]
    run.close()
    assert waiting(store, WANTED) == ["d", "e"]
    list(annotate(store, automatic, waiting(store, WANTED), WANTED))
    assert waiting(store, WANTED) == []
    assert waiting(store, Wanted(("liver",), again=True)) == ["c", "d", "e"]
    assert waiting(store, Wanted(("spleen",))) == ["c", "d", "e"]
    store.remove_label("d", ORIGINAL)
    assert waiting(store, WANTED) == ["d"]


def test_a_second_label_is_added_to_the_first(automatic) -> None:
    store = automatic.examples.store
    for name in ("liver", "spleen"):
        wanted = Wanted((name,))
        assert [one.image for one in annotate(store, automatic, ["c"], wanted)] == ["c"]
    assert original(store, "c", "liver").any()
    assert original(store, "c", "spleen").any()
    assert set(store.get_image_info("c")["medsa_auto"]["confidences"]) == {"liver", "spleen"}


def test_without_a_labelled_study_it_says_what_is_missing(automatic) -> None:
    store = automatic.examples.store
    with pytest.raises(BadInputError, match="no other labelled study of 'stomach' yet"):
        list(annotate(store, automatic, ["c"], Wanted(("stomach",))))
    store.remove_label("b", FINAL)
    with pytest.raises(BadInputError, match="label one or two studies"):
        automatic.segment(store.volume("a"), "a", ("liver",))


def test_what_was_learnt_is_kept_private_and_made_anew_when_a_label_changes(automatic) -> None:
    store, folder = automatic.examples.store, automatic.examples.folder
    before = automatic.segment(store.volume("c"), "c", ("liver",))
    files = {path: path.stat().st_ino for path in folder.iterdir()}
    assert len(files) == 2
    assert {oct(path.stat().st_mode & 0o777) for path in (folder, *files)} == {"0o700", "0o600"}
    assert not any(name in path.name for path in files for name in ("a.nii", "b.nii", "liver"))
    again = automatic.segment(store.volume("c"), "c", ("liver",))
    assert (again.mask == before.mask).all()
    assert {path: path.stat().st_ino for path in folder.iterdir()} == files

    next(iter(files)).write_bytes(b"damaged")
    assert (automatic.segment(store.volume("c"), "c", ("liver",)).mask == before.mask).all()
    save(store, "a", {"liver": draw(1)[1]["spleen"]}, "liver")
    assert (automatic.segment(store.volume("c"), "c", ("liver",)).mask != before.mask).any()
    assert len(list(folder.iterdir())) == 3


def test_a_client_gets_all_labels_as_indices_and_is_told_how_sure_they_are(automatic) -> None:
    store, task = automatic.examples.store, AutomaticTask(automatic)
    answer, _ = task.answer(store.volume("c"), "c", {"result_extension": ".nrrd"}, "user")
    indices = {name: store.labels.by_name(name).index for name in ("liver", "spleen")}
    assert answer.params["label_names"] == indices
    assert set(np.unique(answer.mask)) == {0, *indices.values()}
    one, _ = task.answer(store.volume("e"), "e", {"label": "liver"}, "user")
    assert one.params["confidences"] == {"liver": 0}
    assert one.params["warnings"] == ["no liver was found"]
    assert not one.mask.any()
    with pytest.raises(BadInputError, match="does not know the parameter foreground"):
        task.answer(store.volume("c"), "c", {"foreground": [[1, 2, 3]]}, "user")


def test_a_batch_runs_to_its_end_or_until_it_is_stopped(automatic) -> None:
    store = automatic.examples.store
    batch = Batch(store, automatic)
    assert batch.status() is None
    done = batch.run({"labels": ["liver"], "max_batch_size": 1})
    assert (done["status"], done["progress"]) == ("DONE", {"done": 1, "total": 1})
    assert done["result"]["c"]["tag"] == ORIGINAL
    assert json.loads(json.dumps(done)) == done
    for wrong in ({"label_tag": "final"}, {"labels": 3}, {"images": ["x"]}, {"max_batch_size": -1}):
        with pytest.raises(BadInputError):
            batch.start(None, wrong)
    with pytest.raises(CancelledError):
        list(annotate(store, automatic, ["d"], WANTED, cancelled=lambda: True))
    batch.start("unlabeled", {"label": "liver"})
    batch.end()
    assert batch.status()["status"] in ("STOPPED", "DONE")
    assert not batch.running


def test_a_batch_that_will_be_refused_asks_nothing_of_the_store(automatic, monkeypatch) -> None:
    batch, end = Batch(automatic.examples.store, automatic), threading.Event()
    monkeypatch.setattr(Batch, "_work", lambda *_: end.wait(60))
    batch.start("unlabeled", {"label": "liver"})
    monkeypatch.setattr("medsa.server.batch.waiting", lambda *_: pytest.fail("the images were walked"))
    with pytest.raises(BusyError):
        batch.start("unlabeled", {"label": "liver"})
    end.set()
    batch.end()


def test_the_log_does_not_name_a_file_that_cannot_be_read(automatic, caplog) -> None:
    store = automatic.examples.store
    (store.folder / "DOE^JANE.nii.gz").write_bytes(b"no image")
    with caplog.at_level("INFO"):
        [outcome] = annotate(store, automatic, ["DOE^JANE"], WANTED)
    assert outcome.problem
    assert "is not annotated" in caplog.text
    assert "DOE" not in caplog.text
