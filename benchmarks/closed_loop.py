"""The loop closed on real studies: labels saved through the client, retraining, the gate, and wrong labels.

`python benchmarks/closed_loop.py FOLDER [--labelled 8] [--unseen 12] [--wrong 4] [--minutes 20] [--out DIR]`,
FOLDER holding `images/` and `labels/` of volumes. An Orthanc gets the studies as DICOM; the server over it
retrains by itself when all are labelled. Prints Dice of clicks on unseen studies before and after, what the
gate decided, and what became of wrong labels (right ones turned about).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import nrrd
import numpy as np
from numpy.typing import NDArray

from medsa.data.dicom import volume_from_datasets
from medsa.data.write import write_mask
from medsa.demo.orthanc import Orthanc
from medsa.demo.server import Server
from medsa.demo.studies import DemoStudy, _series, stow
from medsa.evaluation import dice
from medsa.prompts.annotator import first_click, next_click, tight_box
from medsa.training.cases import read_cases

LABELS = ("lesion", "object")
"""Names of the default label set that stand for the values 1 and 2."""
Point = list[int]


def main() -> None:
    """Run the loop and print what it did."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labelled", type=int, default=8)
    parser.add_argument("--unseen", type=int, default=12)
    parser.add_argument("--wrong", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--out", type=Path, help="folder to keep versions and logs in")
    args = parser.parse_args()
    with TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        cases = read_cases(args.folder)[: args.labelled + args.unseen + args.wrong]
        studies = [as_dicom(number, *case.read()[:2]) for number, case in enumerate(cases)]
        known, rest = studies[: args.labelled], studies[args.labelled :]
        close(known, rest[: args.unseen], rest[args.unseen :], args.minutes, out)


def close(
    known: list[DemoStudy], unseen: list[DemoStudy], wrong: list[DemoStudy], minutes: float, out: Path
) -> None:
    """The loop with right labels, then again with wrong ones."""
    with Orthanc(out / "orthanc") as orthanc:
        for study in (*known, *unseen, *wrong):
            stow(orthanc.dicomweb_url, study.datasets)
        with serving(orthanc, out, minutes, len(known)) as client:
            show("unseen studies, before", clicks(client, unseen))
            for study in known:
                save(client, study, study.truth)
            show_decision(ended(client))
            show("unseen studies, after", clicks(client, unseen))
        with serving(orthanc, out, minutes, len(wrong)) as client:
            for study in wrong:
                save(client, study, {name: truth[::-1, ::-1] for name, truth in study.truth.items()})
            show_decision(ended(client))
            show("unseen studies, after wrong labels", clicks(client, unseen))


@contextmanager
def serving(orthanc: Orthanc, out: Path, minutes: float, after: int) -> Iterator[httpx.Client]:
    """A server that retrains after so many labels, and a client of it."""
    versions = out / "versions"
    versions.mkdir(mode=0o700, exist_ok=True)
    conf = {"adapters": str(versions), "retrain_minutes": str(minutes), "retrain_after": str(after)}
    with (
        Server(orthanc.dicomweb_url, out / "server.log", conf=conf) as server,
        httpx.Client(base_url=server.url, timeout=600, trust_env=False) as client,
    ):
        yield client


def as_dicom(number: int, volume: Any, mask: NDArray[np.uint8]) -> DemoStudy:
    """A study of a fake patient with the voxels of a real one, spread over 12 bits."""
    values = volume.voxels.astype(np.float64)
    low, high = np.percentile(values, [0.1, 99.9])
    voxels = ((values - low) / max(high - low, 1e-6) * 4000).clip(0, 4095).astype(np.uint16)
    datasets = _series(
        "abdomen",
        f"loop {number}",
        voxels,
        origin=(0, 0, 0),
        spacing=tuple(float(step) for step in volume.spacing),  # type: ignore[arg-type]
        modality="MR",
        body_part="BRAIN",
        description="Closed loop",
        window=(2000, 4000),
    )
    for dataset in datasets:
        dataset.PatientID, dataset.PatientName = f"LOOP{number}", f"LOOP^{number}"
    values_held = [value for value in (1, 2) if (mask == value).any()]
    return DemoStudy(f"loop{number}", datasets, {LABELS[value - 1]: mask == value for value in values_held})


def save(client: httpx.Client, study: DemoStudy, truth: Mapping[str, NDArray[np.bool_]]) -> None:
    """As 3D Slicer does."""
    volume = volume_from_datasets(study.datasets)
    mask = np.zeros(volume.shape, np.uint8, order="F")
    for value, name in enumerate(truth, start=1):
        mask[truth[name]] = value
    info = [{"name": name, "idx": value} for value, name in enumerate(truth, start=1)]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "label.nii.gz"
        write_mask(path, mask, volume)
        client.put(
            "/datastore/label",
            params={"image": study.series_uid},
            data={"params": json.dumps({"label_info": info})},
            files={"label": (path.name, path.read_bytes())},
        ).raise_for_status()


def ended(client: httpx.Client) -> dict[str, Any]:
    """The status when the round has ended that the last label started."""
    started = time.monotonic()
    while True:
        status = client.get("/medsa/status").raise_for_status().json()
        now = status["round"]
        if now and now["status"] == "DONE" and not status["new_labels"]:
            print(f"retrained within {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
            return status
        if now and now["status"] == "ERROR":
            raise SystemExit("\n".join(now["details"]))
        time.sleep(2)


def clicks(client: httpx.Client, studies: list[DemoStudy]) -> dict[str, float]:
    """Mean Dice after 1 and 3 clicks and with a box, on the slice where each object is largest."""
    found: dict[str, list[float]] = {"1 pt": [], "3 pts": [], "box": []}
    for study in studies:
        for truth in study.truth.values():
            k = int(truth.sum(axis=(0, 1)).argmax())
            wanted = truth[:, :, k]
            points: dict[bool, list[Point]] = {True: [], False: []}
            click = first_click(wanted)
            for count in range(1, 4):
                points[click.positive].append([*click.index, k])
                mask = ask(client, study, k, foreground=points[True], background=points[False])
                if f"{count} pt{'s' * (count > 1)}" in found:
                    found[f"{count} pt{'s' * (count > 1)}"].append(dice(mask, wanted))
                click = next_click(wanted, mask != 0) or click
            (i0, j0), (i1, j1) = tight_box(wanted).astype(int).tolist()
            found["box"].append(dice(ask(client, study, k, roi=[i0, i1, j0, j1, k, k]), wanted))
    return {name: float(np.mean(values)) for name, values in found.items()}


def ask(client: httpx.Client, study: DemoStudy, k: int, **prompts: Any) -> NDArray[np.uint8]:
    """(I, J), the answer on slice k; each object's first click begins anew."""
    first = len(prompts.get("foreground", [])) + len(prompts.get("background", [])) <= 1
    sent = {**prompts, "slice": k, "reset_state": first, "result_extension": ".nrrd"}
    answer = client.post(
        "/infer/medsa_2d",
        params={"image": study.series_uid, "output": "image"},
        files={"params": (None, json.dumps(sent))},
    ).raise_for_status()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "mask.nrrd"
        path.write_bytes(answer.content)
        return nrrd.read(str(path))[0][:, :, k]


def show(what: str, values: Mapping[str, float]) -> None:
    """A line of figures."""
    print(f"{what}: {'  '.join(f'{name} {value:.3f}' for name, value in values.items())}", flush=True)


def show_decision(status: Mapping[str, Any]) -> None:
    """What the gate decided and why."""
    decision = status["last_decision"]
    outcome = "promoted" if decision.get("promoted") else "refused"
    print(f"{decision.get('version')}: {outcome}: {'; '.join(decision['reasons'])}")
    for name, value in decision.get("figures", {}).items():
        print(f"   {name}: {value:.3f}")
    print(f"   served: {status['version']}", flush=True)


if __name__ == "__main__":
    main()
