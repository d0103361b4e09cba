"""One round of retraining: labels become a candidate, the gate decides, the pointer moves or stays."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from medsa.adapters.state import load_adapter, read_card
from medsa.config import load_config
from medsa.data.volume import Volume
from medsa.errors import MedsaError
from medsa.evaluation.forgetting import FORGETTING
from medsa.evaluation.protocol import Case, as_json
from medsa.files import read_record, write_atomically
from medsa.sam import Promptable, Sam
from medsa.segmenter import Segmenter
from medsa.training.cases import Nameless
from medsa.training.gate import Decision, Rules, Tables, decide, measure_tables
from medsa.training.rehearsal import rehearsal
from medsa.training.splits import Side, Splits, patient_of
from medsa.training.train import Request, train
from medsa.training.versions import VersionStore

PROGRESS, USED = "progress.json", "used.json"
_ROUND = ".round-"

Progress = Callable[[str, float], None]
"""Told what is being done ("reading", "training", "measuring") and how much of it is done, 0..1."""


class BusyError(MedsaError):
    """Another round is running on the same versions."""

    status = 429


@dataclass(frozen=True)
class Labelled:
    """A labelled image: its id, a word that changes with its label, and how both are read."""

    id: str
    state: str
    read: Callable[[], tuple[Volume, NDArray[np.uint8], dict[int, str]]]


class Policy(BaseModel):
    """How a site's rounds are done (configs/retraining).

    `share` of the patients validates; `slices` of each label are measured, and in the first so many `volumes`
    what one click finds in all of it; so many drawn cases are trained on as a `rehearsal` of what is not the
    site's; `settings` name a file of configs/training. A round ends after so many `steps`, if any are given,
    where its minutes are not over before.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "default"
    title: str = ""
    share: float = Field(0.2, gt=0, lt=1)
    slices: int = Field(3, gt=0)
    volumes: int = Field(2, ge=0)
    rehearsal: int = Field(24, ge=0)
    settings: str = "default"
    steps: int | None = Field(None, gt=0)
    gate: Rules = Rules()


def read_policy(name: str = "default") -> Policy:
    """The policy of configs/retraining/<name>.yaml; raises `ConfigurationError`."""
    return load_config("retraining", name, Policy)


@dataclass(frozen=True)
class Plan:
    """One round.

    `request` says how to train; where its method is that of the served version, training goes on from there,
    else from `origin`, the adapter that is served without any version. Without `again` a round does nothing
    unless a label is new since the last one.
    """

    request: Request = field(default_factory=Request)
    policy: Policy = field(default_factory=read_policy)
    origin: Path | None = None
    again: bool = False
    forgetting: Sequence[Case] = FORGETTING


@dataclass(frozen=True)
class Outcome:
    """What a round came to: "promoted", "refused" or "nothing", and why; `version` is the candidate."""

    what: str
    reasons: tuple[str, ...]
    version: str | None = None


def splits_of(store: VersionStore, share: float = 0.2) -> Splits:
    """The sides of the patients behind a store of versions."""
    return Splits(store.folder / "splits.json", share)


def unused(store: VersionStore, states: Mapping[str, str]) -> list[str]:
    """The images, of image -> state of its label, whose label no round has used yet."""
    splits, used = splits_of(store), _used(store)
    return [image for image, state in states.items() if splits.hashed(f"{image} {state}") not in used]


def retrain(
    load: Callable[[], Sam],
    cases: Sequence[Labelled],
    store: VersionStore,
    plan: Plan,
    progress: Progress = lambda _what, _part: None,
) -> Outcome:
    """Train on the labels of `cases`, measure on held-out patients, serve the candidate if the gate lets it.

    `load` gives the frozen base; it is not asked for when there is nothing to do. Held-out patients choose
    nothing before the gate, not even when training ends. Every outcome is logged in `store`. Raises
    `BusyError` when another process is at it, and what training raises.
    """
    store.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with _round_lock(store, timeout=1):
            for left in store.folder.glob(f"{_ROUND}*"):  # of a round that was killed
                shutil.rmtree(left)
            folder = Path(tempfile.mkdtemp(prefix=_ROUND, dir=store.folder))
            try:
                told = _Told(store.folder / PROGRESS, progress)
                return _round(load, cases, store, plan, folder, told)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                (store.folder / PROGRESS).unlink(missing_ok=True)
    except Timeout:
        raise BusyError("a retraining is running already: wait for it to end, or stop it") from None


def _round(
    load: Callable[[], Sam],
    cases: Sequence[Labelled],
    store: VersionStore,
    plan: Plan,
    folder: Path,
    progress: Progress,
) -> Outcome:
    if not plan.again and not unused(store, {case.id: case.state for case in cases}):
        return Outcome("nothing", ("no label is new since the last round",))
    splits = splits_of(store, plan.policy.share)
    sides = _sorted_out(cases, splits, progress)
    training, validation = sides["training"], sides["validation"]
    reason = _too_few(training, validation)
    if reason:
        store.log({"event": "nothing done", "reasons": [reason]})
        return Outcome("nothing", (reason,))

    sam, before = load(), store.current()
    serving = before.folder if before else plan.origin
    request = _from(serving, plan)
    trained = train(sam, [*training, *rehearsal(plan.policy.rehearsal)], (), folder, request, told=progress)
    if trained.steps < 2:  # the first one only warms up
        reason = "the round's minutes were over before anything was learnt: give it more (retrain_minutes)"
        store.log({"event": "nothing done", "reasons": [reason]})
        return Outcome("nothing", (reason,))
    tables = _measured(sam, trained.candidate, serving, validation, plan, progress)
    decision = decide(tables["candidate"], tables["current"], tables["base"], plan.policy.gate)
    unreadable = len(cases) - len(training) - len(validation)
    kept = {"training": len(training), "validation": len(validation), "unreadable": unreadable}
    version = store.add(
        trained.candidate, _report(decision, tables, kept, before.name if before else None, plan)
    )
    _note_used(store, [splits.hashed(f"{case.id} {case.state}") for case in cases])
    return _settle(store, version.name, before.name if before else None, decision)


def _from(serving: Path | None, plan: Plan) -> Request:
    """The request, going on from what is served if that is of the wanted method, else from `plan.origin`."""
    request = replace(plan.request, measured=0)  # the gate measures
    if serving is None or request.method not in (None, read_card(serving).method.name):
        return replace(request, start=plan.origin)
    return replace(request, start=serving)


def _sorted_out(cases: Sequence[Labelled], splits: Splits, progress: Progress) -> dict[Side, list[Nameless]]:
    """The cases of each side. What cannot be read or is empty is left out: one bad label spoils no round."""
    patients: dict[str, str] = {}
    for number, case in enumerate(cases, start=1):
        with suppress(MedsaError):
            volume, mask, names = case.read()
            if np.isin(mask, list(names)).any():
                patients[case.id] = patient_of(volume.headers[0] if volume.headers else None, case.id)
        progress("reading", number / len(cases))
    sides = splits.assign(patients.values())
    found: dict[Side, list[Nameless]] = {"training": [], "validation": []}
    for case in cases:
        if (patient := patients.get(case.id)) is not None:
            nameless = Nameless(splits.hashed(case.id), splits.hashed(patient), case.read)
            found[sides[patient]].append(nameless)
    return found


def _too_few(training: Sequence[Nameless], validation: Sequence[Nameless]) -> str | None:
    patients = {case.patient for case in (*training, *validation)}
    if not patients:
        return "no image has a label that can be read: label some first"
    if len(patients) == 1:
        return (
            "all labels are of one patient: label an image of another one, because nobody is trained on and "
            "measured on at once"
        )
    if not validation:
        return "no held-out patient has a label: label images of further patients"
    if not training:
        return "all labels are of held-out patients: label images of further patients"
    return None


def _measured(
    sam: Sam,
    candidate: Path,
    serving: Path | None,
    validation: Sequence[Nameless],
    plan: Plan,
    progress: Progress,
) -> dict[str, Tables]:
    """Tables of the candidate, of what is served and of the base; the same adapter is measured once."""
    named = {"candidate": candidate, "current": serving, "base": plan.origin}
    models: dict[Path | None, Promptable] = {
        path: load_adapter(sam, path) if path else sam for path in dict.fromkeys(named.values())
    }
    total = len(validation) + len(plan.forgetting)
    first = Segmenter(sam)
    measured = measure_tables(
        {str(path): first.beside(models[path]) for path in models},
        validation,
        forgetting=plan.forgetting,
        slices=plan.policy.slices,
        volumes=plan.policy.volumes,
        window=plan.request.window,
        progress=lambda done: progress("measuring", done / total),
    )
    return {name: measured[str(path)] for name, path in named.items()}


def _report(
    decision: Decision, tables: Mapping[str, Tables], kept: Mapping[str, int], before: str | None, plan: Plan
) -> dict[str, Any]:
    return {
        "promoted": decision.promoted,
        "reasons": decision.reasons,
        "figures": decision.figures,
        "compared with": before,
        "cases": kept,
        "rules": plan.policy.gate.model_dump(),
        "rows": {
            name: {"held-out": as_json(table.validation), "forgetting": as_json(table.forgetting)}
            for name, table in tables.items()
        },
    }


def _settle(store: VersionStore, name: str, before: str | None, decision: Decision) -> Outcome:
    """Log the decision, and move the pointer if it is still where it was when the candidate was compared."""
    with store.lock:
        pointer, promoted, reasons = store.pointer(), decision.promoted, decision.reasons
        if promoted and pointer.pinned:
            promoted, reasons = False, (f"{pointer.name} is pinned; {reasons[0]}",)
        elif promoted and pointer.name != before:
            promoted, reasons = False, ("another version was promoted meanwhile: compare again",)
        decided = {"event": "decided", "version": name, "promoted": promoted, "reasons": reasons}
        store.log({**decided, "compared with": before, "figures": decision.figures})
        if promoted:
            store.promote(name, by="retraining")
    return Outcome("promoted" if promoted else "refused", reasons, name)


def _used(store: VersionStore) -> set[str]:
    path = store.folder / USED
    return set(read_record(path, list)) if path.is_file() else set()


def _note_used(store: VersionStore, states: Iterable[str]) -> None:
    write_atomically(store.folder / USED, json.dumps(sorted(states)).encode())


class _Told:
    """Passes progress on, and keeps it in a file for whoever looks from another process."""

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path, self._progress, self._kept = path, progress, ("", -1.0)

    def __call__(self, what: str, part: float) -> None:
        if what != self._kept[0] or part - self._kept[1] >= 0.01:
            self._kept = (what, part)
            write_atomically(self._path, json.dumps({"what": what, "part": round(part, 3)}).encode())
            self._progress(what, part)


def progress_of(store: VersionStore) -> dict[str, Any] | None:
    """What the running round is at, of whatever process; None when none runs."""
    try:
        told = json.loads((store.folder / PROGRESS).read_text("utf-8"))
        with _round_lock(store, timeout=0):  # nobody runs: the process that told this was killed
            return None
    except Timeout:
        return told
    except (OSError, ValueError):
        return None


def _round_lock(store: VersionStore, timeout: float) -> FileLock:
    """Held by the one round that runs; `timeout` seconds, because `progress_of` holds it for a moment."""
    return FileLock(store.folder / ".round.lock", timeout=timeout, mode=0o600)
