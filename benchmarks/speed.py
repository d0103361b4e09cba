"""How long a click takes and what it costs: the server on a real Orthanc, beside MONAI Label's SAM 2 task.

Everything is timed from the client: whole HTTP round trips of what OHIF sends. SAM 2 is MONAI Label's own
task, called in this process, without HTTP and without DICOM, on hiera-tiny with random weights. The two take
turns in one run. `python benchmarks/speed.py [--rounds N] [--without-sam2] [--adapters DIR]`
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import httpx
import nibabel
import numpy as np
from numpy.typing import NDArray
from pydicom.uid import generate_uid

from medsa.data.read import read_volume
from medsa.demo.check import TIMEOUT, infer
from medsa.demo.orthanc import Orthanc
from medsa.demo.server import Server
from medsa.demo.studies import DemoStudy, abdomen, save, stow
from medsa.prompts.annotator import Click, first_click, next_click

PAUSE = 0.5  # seconds after SAM 2's turn: the threads it computed with wait for more before they sleep
SMALL, LARGE, NEVER_SEEN, CORRECTIONS = (256, 256, 60), (512, 512, 120), 3, 5


def main() -> None:
    """Measure, and print a table: figure, median, target, and what was warm or cold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns each side takes (default 15)")
    parser.add_argument("--without-sam2", action="store_true", help="leave the comparison out")
    parser.add_argument("--organ", default="liver", help="what is followed through a volume (liver)")
    parser.add_argument("--adapters", metavar="DIR", help="a version to serve instead of the starter")
    args = parser.parse_args()
    conf = {"ahead": "0", **({"adapters": args.adapters} if args.adapters else {})}
    with tempfile.TemporaryDirectory(prefix="medsa-bench-") as name:
        folder = Path(name)
        describe_machine()
        small, large, unseen = abdomen(SMALL), abdomen(LARGE, seed=1), abdomen(SMALL, seed=2)
        series = [large, *(another_series(large) for _ in range(NEVER_SEEN - 1))]
        environment = {"MEDSA_CACHE": str(folder / "cache")}
        with Orthanc(folder / "orthanc") as orthanc:
            for study in (small, unseen, *series):
                stow(orthanc.dicomweb_url, study.datasets)
            with (
                Server(  # nothing is encoded ahead: slices are to be cold
                    orthanc.dicomweb_url, folder / "server.log", conf=conf, environment=environment
                ) as server,
                httpx.Client(base_url=server.url, timeout=TIMEOUT, trust_env=False) as client,
            ):
                print(f"server's memory after its start: {memory(server, 'VmRSS'):.0f} MiB\n", flush=True)
                header("one click", "median", "worst", "target")
                sam2 = None if args.without_sam2 else sam2_click(small, folder)
                take_turns(client, small, args.rounds, sam2)
                first_clicks(client, series)
                a_volume(client, unseen, args.organ)
                info_meanwhile(client, server.url, large)
                memory_row(server)


def describe_machine() -> None:
    """Where and when this was measured; the load tells how far to trust it."""
    model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line)
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    name, python = model.partition(":")[2].strip(), platform.python_version()
    print(f"{name}, {cores} cores, Python {python}, load {load:.1f}")


def another_series(study: DemoStudy) -> DemoStudy:
    """The same pixels under new identifiers: a series the server has not seen."""
    copies = []
    names = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
    shared = {name: generate_uid() for name in names}
    for dataset in study.datasets:
        copied = deepcopy(dataset)
        for name, uid in (*shared.items(), ("SOPInstanceUID", generate_uid())):
            setattr(copied, name, uid)
        copied.file_meta.MediaStorageSOPInstanceUID = copied.SOPInstanceUID
        copies.append(copied)
    return replace(study, datasets=tuple(copies))


def take_turns(
    client: httpx.Client, study: DemoStudy, rounds: int, sam2: Callable[[int], float] | None
) -> None:
    """Warm clicks, cold slices and SAM 2, one after the other, `rounds` times; prints medians and ratios."""
    truth = study.truth["liver"]
    slices = np.flatnonzero(truth.any(axis=(0, 1)))
    if len(slices) < rounds + 2:
        raise SystemExit(f"--rounds can be at most {len(slices) - 2}: each turn takes a slice that is new")
    known, fresh = int(slices[0]), [int(k) for k in slices[1 : rounds + 2]]
    click(client, study, known)
    click(client, study, fresh.pop())
    warm, cold, other = [], [], []
    points = np.argwhere(truth[:, :, known])
    for turn, k in enumerate(fresh):
        time.sleep(PAUSE)
        i, j = points[len(points) * (turn + 1) // (rounds + 2)]
        warm.append(click(client, study, known, (int(i), int(j))))
        cold.append(click(client, study, k))
        if sam2 is not None:
            other.append(sam2(k))
    row("warm click: embedding cached, 256 x 256 x 60, HTTP", warm, 0.150)
    row("cold slice of a cached volume, HTTP", cold, 0.8)
    if other:
        row("MONAI Label's SAM 2 task, hiera-tiny, in process", other)
        ratios = [statistics.median(other) / statistics.median(mine) for mine in (warm, cold)]
        print(f"{'  SAM 2 / warm click, SAM 2 / cold slice':52}{ratios[0]:8.0f} x{ratios[1]:8.1f} x")


def first_clicks(client: httpx.Client, series: Sequence[DemoStudy]) -> None:
    """One click on each of several series that the server has never been asked for."""
    depth = LARGE[2]
    times = [click(client, study, depth * (5 + number) // 12) for number, study in enumerate(series)]
    row("first click on a series never seen, 512 x 512 x 120", times, 6.0)


def a_volume(client: httpx.Client, study: DemoStudy, organ: str) -> None:
    """One click to a volume that the server has never been asked for, then clicks that correct it."""
    truth, points = study.truth[organ], dict[bool, list[list[int]]]({True: [], False: []})
    held = np.flatnonzero(truth.any(axis=(0, 1)))
    k = int(held[len(held) // 2])
    clicked, times, found = Click((*first_click(truth[:, :, k]).index, k), positive=True), [], []
    one_slice = click(client, study, k)
    for _ in range(1 + CORRECTIONS):
        points[clicked.positive].append([int(at) for at in clicked.index])
        asked = {"foreground": points[True], "background": points[False]}
        mask, seconds = infer(client, study.series_uid, asked, "medsa_3d")
        times.append(seconds)
        found.append(int(mask.any(axis=(0, 1)).sum()))
        following = next_click(truth, mask != 0)
        if following is None:
            break
        clicked = following
    size = " x ".join(map(str, truth.shape))
    row(f"the clicked slice of a series never seen, {size}", [one_slice], 1.0)
    row(f"then its volume, {found[0]} slices ({len(held)} hold it)", times[:1], 25.0)
    row(f"a click that corrects it ({len(times) - 1} times)", times[1:] or [0.0], 1.5)


def info_meanwhile(client: httpx.Client, url: str, study: DemoStudy) -> None:
    """/info/ from a second client while clicks on new slices are computed without a pause."""
    times: list[float] = []
    with (
        computing(client, study) as busy,
        httpx.Client(base_url=url, timeout=TIMEOUT, trust_env=False) as second,
    ):
        while busy():
            started = time.perf_counter()
            second.get("/info/").raise_for_status()
            times.append(time.perf_counter() - started)
            time.sleep(0.02)
    row(f"/info/ while clicks are computed ({len(times)} times)", times, 0.050)


@contextmanager
def computing(client: httpx.Client, study: DemoStudy) -> Iterator[Callable[[], bool]]:
    """Clicks on every second slice of `study` in a thread; yields whether it still computes."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for k in range(0, LARGE[2], 2):
                click(client, study, k)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread below
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    yield thread.is_alive
    thread.join()
    if failures:
        raise failures[0]


def click(client: httpx.Client, study: DemoStudy, k: int, at: tuple[int, int] | None = None) -> float:
    """Seconds of one round trip: a click on the liver, or in the body where the slice has none."""
    truth = study.truth["liver"][:, :, k]
    where = at or (first_click(truth).index if truth.any() else (truth.shape[0] // 2, truth.shape[1] // 2))
    mask, seconds = infer(client, study.series_uid, {"foreground": [[*where, k]], "background": []})
    expect_one_slice(mask, study.truth["liver"].shape, k)
    return seconds


def sam2_click(study: DemoStudy, folder: Path) -> Callable[[int], float]:
    """A function that clicks slice k of `study` through MONAI Label's SAM 2 task and returns the seconds."""
    os.environ["MONAI_LABEL_DATASTORE_CACHE_PATH"] = str(folder / "sam2")
    logging.disable(logging.INFO)
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from monai.transforms import LoadImaged
    from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
    from monailabel.sam2.infer import Sam2InferTask
    from monailabel.transform.writer import Writer
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    GlobalHydra.instance().clear()
    initialize_config_module("sam2", version_base="1.2")

    class RandomWeights(Sam2InferTask):
        """The task as it is, without the download of its weights."""

        def __init__(self) -> None:
            InferTask.__init__(self, InferType.ANNOTATION, None, 2, "SAM 2")
            self.image_loader, self.post_trans = LoadImaged(keys="image"), None
            self.writer = Writer(ref_image="image")
            self.predictors = {"cpu": SAM2ImagePredictor(build_sam2("sam2_hiera_t.yaml", device="cpu"))}
            self.image_cache: dict[str, object] = {}

    save(folder / "series", study.datasets)
    volume = read_volume(folder / "series")
    path = folder / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(volume.voxels.astype(np.int16), volume.affine), path)
    task = RandomWeights()

    def run(k: int) -> float:
        i, j = first_click(study.truth["liver"][:, :, k]).index
        request = {
            "image": str(path),
            "foreground": [[i, j, k]],
            "device": "cpu",
            "result_extension": ".nrrd",
        }
        started = time.perf_counter()
        file, _ = task(request)
        seconds = time.perf_counter() - started
        expect_one_slice(np.asarray(read_volume(Path(file)).voxels), volume.shape, k)
        Path(file).unlink()
        return seconds

    run(int(study.truth["liver"].any(axis=(0, 1)).argmax()))
    return run


def expect_one_slice(mask: NDArray, shape: Sequence[int], k: int) -> None:
    """Both sides must answer with the whole grid, changed on slice k only."""
    if mask.shape != tuple(shape) or np.delete(mask, k, axis=2).any():
        raise SystemExit(f"a click answered with a mask of {mask.shape}, or with other slices than {k}")


def header(*names: str) -> None:
    print(f"{names[0]:52}" + "".join(f"{name:>10}" for name in names[1:]))


def row(name: str, seconds: Sequence[float], target: float | None = None) -> None:
    """One figure in milliseconds, with what it should be."""
    median, worst = 1e3 * statistics.median(seconds), 1e3 * max(seconds)
    wanted = "" if target is None else f"{1e3 * target:7.0f} ms{'' if median <= 1e3 * target else '  MISSED'}"
    print(f"{name:52}{median:7.0f} ms{worst:7.0f} ms{wanted}", flush=True)


def memory_row(server: Server) -> None:
    now, most, target = memory(server, "VmRSS"), memory(server, "VmHWM"), 3 * 1024
    missed = "" if most <= target else "  MISSED"
    name = "server's memory, three such series opened"
    print(f"{name:52}{now:6.0f} MiB{most:6.0f} MiB{target:6.0f} MiB{missed}")


def memory(server: Server, field: str) -> float:
    """MiB of the server's process as /proc's `field` says (VmRSS: now, VmHWM: most)."""
    server.check()
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(field))) / 1024


if __name__ == "__main__":
    main()
