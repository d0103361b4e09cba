"""`make demo CHECK=1`: what a person would do in the demo, through HTTP, with the truth to compare with."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import httpx
import nrrd
import numpy as np
import pydicom
from numpy.typing import NDArray

from medsa.data.dicom import volume_from_datasets
from medsa.data.seg import read_seg
from medsa.data.write import nrrd_bytes
from medsa.demo.studies import DemoStudy
from medsa.errors import MedsaError
from medsa.evaluation import dice
from medsa.prompts.annotator import first_click, next_click, tight_box

FLOOR = (
    0.5  # mean Dice of the first clicks; one click on an unknown object is a guess that a second one corrects
)
TIMEOUT = httpx.Timeout(120, connect=5)
SEG_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"


class CheckError(MedsaError):
    """The demo does not do what it should."""


@dataclass(frozen=True)
class Row:
    """One organ: where it was clicked (i, j, k), Dice on that slice and seconds: two clicks and a box."""

    study: str
    organ: str
    click: tuple[int, int, int]
    first: tuple[float, float]
    second: tuple[float, float]
    box: tuple[float, float]


def check(url: str, dicomweb_url: str, studies: Sequence[DemoStudy]) -> None:
    """Ask for every organ of every study with truth, store one mask, read it back; print what came of it.

    Raises `CheckError` when the mean Dice of the first clicks is below `FLOOR` or that of the second ones is
    lower still, when a click changes other slices, and when the SEG in the store is not what was saved.
    """
    rows = []
    with httpx.Client(base_url=url, timeout=TIMEOUT, trust_env=False) as client:
        print(
            f"{'study':9} {'organ':13} {'click':>13}   1 click: Dice      s   2 clicks: Dice      s"
            "   a box: Dice      s"
        )
        for study in studies:
            for organ, truth in study.truth.items():
                row, mask = _asked(client, study, organ, truth)
                rows.append(row)
                print(
                    f"{row.study:9} {row.organ:13} {'{},{},{}'.format(*row.click):>13}"
                    f"{row.first[0]:16.2f} {row.first[1]:6.2f} {row.second[0]:16.2f} {row.second[1]:6.2f}"
                    f"{row.box[0]:15.2f} {row.box[1]:6.2f}",
                    flush=True,
                )
                if study.name == "abdomen" and organ == "liver":
                    saved = study, organ, mask
        first, second, box = (
            float(np.mean([answer[0] for answer in answers]))
            for answers in zip(*((row.first, row.second, row.box) for row in rows), strict=True)
        )
        latency = float(np.median([row.second[1] for row in rows]))
        print(
            f"mean Dice {first:.2f}, then {second:.2f}, with a box {box:.2f}; "
            f"median of a second click {1e3 * latency:.0f} ms"
        )
        _save(client, dicomweb_url, *saved)
        print(f"saved {saved[1]} of {saved[0].name}: the SEG is in the store and reads back the same")
    if first < FLOOR or second < first:
        raise CheckError(f"the mean Dice is {first:.2f}, then {second:.2f}: below {FLOOR}, or falling")


def _asked(client: httpx.Client, study: DemoStudy, organ: str, truth: NDArray) -> tuple[Row, NDArray]:
    """A click at the organ's deepest point on its largest slice, one where the mask is most wrong; a box.

    Returns with the row the mask (I, J, K) of the two clicks.
    """
    k = int(truth.sum(axis=(0, 1)).argmax())
    wanted = truth[:, :, k]
    first = first_click(wanted)
    points: dict[str, list[list[int]]] = {"foreground": [[*first.index, k]], "background": []}
    mask, seconds = infer(client, study.series_uid, points)
    if np.delete(mask, k, axis=2).any():
        raise CheckError(f"a click on slice {k} of {study.name} also changed other slices")
    results = [(dice(mask[:, :, k], wanted), seconds)]
    if second := next_click(wanted, mask[:, :, k] != 0):
        points["foreground" if second.positive else "background"].append([*second.index, k])
    mask, seconds = infer(client, study.series_uid, points)
    results.append((dice(mask[:, :, k], wanted), seconds))
    corners = [[*map(int, corner), k] for corner in tight_box(wanted)]
    boxed, seconds = infer(client, study.series_uid, {"box": corners})
    results.append((dice(boxed[:, :, k], wanted), seconds))
    return Row(study.name, organ, (first.index[0], first.index[1], k), *results), mask


def infer(
    client: httpx.Client, image: str, params: dict[str, list[list[int]]], model: str = "medsa_2d"
) -> tuple[NDArray[np.uint8], float]:
    """OHIF's request: the mask (I, J, K) and the seconds until it was here; raises `CheckError`."""
    sent = {**params, "result_extension": ".nrrd", "result_dtype": "uint8", "result_compress": False}
    form = {"params": (None, json.dumps({**sent, "restore_label_idx": False}))}
    started = time.perf_counter()
    answer = client.post(f"/infer/{model}", params={"image": image, "output": "image"}, files=form)
    seconds = time.perf_counter() - started
    if answer.status_code != httpx.codes.OK:
        raise CheckError(f"a click was answered with HTTP {answer.status_code}: {answer.text[:500]}")
    stream = BytesIO(answer.content)
    return np.asarray(nrrd.read_data(nrrd.read_header(stream), stream)), seconds


def _save(client: httpx.Client, dicomweb_url: str, study: DemoStudy, organ: str, mask: NDArray) -> None:
    """Save `mask` as 3D Slicer does, and find it in the store as the same mask."""
    volume = volume_from_datasets(study.datasets)
    before = set(_segs(dicomweb_url, study))
    answer = client.put(
        "/datastore/label",
        params={"image": study.series_uid, "tag": "final"},
        data={"params": json.dumps({"label_info": [{"name": organ, "idx": 1}], "client_id": "demo"})},
        files={"label": ("label.nrrd", nrrd_bytes(mask, volume))},
    )
    if answer.status_code != httpx.codes.OK:
        raise CheckError(f"saving a label was answered with HTTP {answer.status_code}: {answer.text[:500]}")
    new = set(_segs(dicomweb_url, study)) - before
    if len(new) != 1:
        raise CheckError(f"after saving one label the store holds {len(new)} new SEG objects")
    stored, names = read_seg(_fetch(new.pop()), volume)
    if list(names.values()) != [organ] or dice(stored, mask) < 1:
        raise CheckError(
            f"the SEG in the store is not the mask that was saved: {names}, {dice(stored, mask):.4f}"
        )


def _segs(dicomweb_url: str, study: DemoStudy) -> list[str]:
    """Addresses of the study's SEG instances."""
    url = f"{dicomweb_url}/studies/{study.study_uid}/instances"
    answer = httpx.get(url, params={"SOPClassUID": SEG_STORAGE}, timeout=TIMEOUT, trust_env=False)
    answer.raise_for_status()
    found = answer.json() if answer.content else []
    tags = ("0020000E", "00080018")
    values = [[entry[tag]["Value"][0] for tag in tags] for entry in found]
    return [
        f"{dicomweb_url}/studies/{study.study_uid}/series/{series}/instances/{sop}" for series, sop in values
    ]


def _fetch(url: str) -> pydicom.Dataset:
    accept = {"Accept": 'multipart/related; type="application/dicom"'}
    answer = httpx.get(url, headers=accept, timeout=TIMEOUT, trust_env=False)
    answer.raise_for_status()
    start = answer.content.index(b"\r\n\r\n") + 4
    return pydicom.dcmread(BytesIO(answer.content[start : answer.content.rindex(b"\r\n--")]))
