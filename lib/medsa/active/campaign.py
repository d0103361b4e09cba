"""The simulated campaign: a strategy picks studies, an annotator labels them, the model learns, and so on.

All of it goes through the product's own parts: the runtime answers the clicks, the engine trains, the gate
decides. What a study costs is the clicks that the annotator needs. Runs are paired: under one seed all
strategies begin with the same labelled studies and the same model.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsa.active.coverage import comparable, nearest, typicality
from medsa.active.embeddings import remembering
from medsa.active.scores import Examined, examine, joined
from medsa.active.strategies import Pool, choose, possible, strategy
from medsa.adapters.state import load_adapter
from medsa.data.volume import Volume
from medsa.errors import BadInputError
from medsa.evaluation.overlap import dice
from medsa.evaluation.protocol import Case, chosen_slices
from medsa.files import read_record, write_atomically
from medsa.prompts.annotator import first_click, next_click
from medsa.prompts.prompt import Prompt
from medsa.sam import Sam
from medsa.segmenter import ContentCache, Segmenter, Session
from medsa.segmenter.automatic import learn
from medsa.segmenter.prototypes import Prototypes
from medsa.training.cases import Nameless
from medsa.training.retrain import Labelled, Plan, Policy, read_policy, retrain
from medsa.training.train import Request, train
from medsa.training.versions import VersionStore

Mask = NDArray[np.bool_]
Line = dict[str, Any]
"""A round of a run, as it is written down."""
Told = Callable[[str], None]

GOALS = (0.85, 0.9)
"""Dice that clicks are counted to; the annotator stops at the last one."""
CAP = 10
"""Clicks after which an object has failed."""
LOOKED_AT = 3
"""Slices of a study that are looked at for its scores."""
TEACHERS = 8
"""Labelled studies that auto-prompts go by."""
BY_ITSELF = ("strategies", "seeds")
"""What of a design says which runs there are, and not what a run is."""
METRICS = ("1 pt", "3 pts", "noc85", "noc90")


@dataclass(frozen=True)
class Design:
    """What is tried: `strategies` under each of `seeds`, `start` studies at first, then `batch` a round.

    A run ends when `budget` studies are labelled. `slices` of each of `labels` (all, if none) are annotated
    in a study, and measured in those of `held_out` patients. Each round trains as `request` says, from
    `origin`; with the `gate` as the server does, by its `policy`: some patients only validate, and a
    candidate that is not better is not used.
    """

    strategies: tuple[str, ...]
    seeds: int = 4
    start: int = 4
    batch: int = 4
    budget: int = 40
    held_out: int = 12
    slices: int = 1
    labels: Mapping[int, str] = field(default_factory=dict)
    request: Request = field(default_factory=Request)
    origin: Path | None = None
    gate: bool = True
    policy: Policy = field(default_factory=read_policy)

    @property
    def rounds(self) -> int:
        """Rounds of a run, the one with the first studies among them."""
        return 1 + -(-(self.budget - self.start) // self.batch)


@dataclass(frozen=True, eq=False)
class _Study:
    volume: Volume
    mask: NDArray[np.uint8]
    names: Mapping[int, str]

    @property
    def nbytes(self) -> int:
        return self.volume.nbytes + self.mask.nbytes


class Campaign:
    """A design on labelled `cases`, in `folder`, which keeps a record of each run: it may be gone on with.

    Raises `BadInputError` when there are too few cases, or when the folder holds another campaign.
    """

    def __init__(
        self, sam: Sam, cases: Sequence[Case], design: Design, folder: Path, told: Told = lambda _: None
    ) -> None:
        for name in design.strategies:
            strategy(name)
        patients = sorted({case.patient for case in cases})
        order = np.random.default_rng(0).permutation(len(patients))
        apart = {patients[n] for n in order[: design.held_out]}
        self.held_out = [case for case in cases if case.patient in apart]
        self.pool = [case for case in cases if case.patient not in apart]
        if len(self.pool) < design.budget or not self.held_out:
            raise BadInputError(
                f"{len(cases)} studies of {len(patients)} patients are too few: {design.held_out} patients "
                f"are held out, and {design.budget} studies of others are to be labelled"
            )
        if not 0 < design.start <= design.budget:
            raise BadInputError(
                "a campaign starts with at least one study, and not with more than its budget"
            )
        self.design, self.folder, self.told = design, folder, told
        self.sam = remembering(sam, folder / "embeddings")
        self.first = Segmenter(sam)
        self._studies: ContentCache[_Study] = ContentCache(1 << 30)
        self._frozen: dict[int, dict[str, float]] = {}
        self._taught: dict[tuple[int, str, str], Prototypes] = {}
        self._check()

    def run(self) -> dict[str, list[list[Line]]]:
        """The lines of every run, by strategy and seed; what is on disk already is not done again.

        One seed after another: what was stopped has compared all strategies on the first ones.
        """
        runs: dict[str, list[list[Line]]] = {name: [] for name in self.design.strategies}
        for seed in range(self.design.seeds):
            for name, lines in self._seed(seed).items():
                runs[name].append(lines)
        return runs

    def before(self) -> dict[str, float]:
        """What the model that learns nothing gives on the held-out patients."""
        path = self.folder / "before.json"
        if not path.is_file():
            write_atomically(path, json.dumps(self._measured(self._untaught)).encode())
        return read_record(path, dict, *METRICS)

    def _check(self) -> None:
        """Write down what this campaign is, or see that the folder holds the same one."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        common = {key: value for key, value in asdict(self.design).items() if key not in BY_ITSELF}
        text = json.dumps(common, default=str, indent=1)
        cases = hashlib.sha256("\n".join(case.id for case in (*self.pool, *self.held_out)).encode())
        head = f"{text}\n{cases.hexdigest()} {self.sam.digest} {self.sam.image_size}\n"
        path = self.folder / "design"
        if path.is_file() and path.read_text("utf-8") != head:
            raise BadInputError(
                f"'{self.folder}' holds a campaign of other data or options: go on with those, or choose "
                "another folder"
            )
        write_atomically(path, head.encode())

    def _seed(self, seed: int) -> dict[str, list[Line]]:
        """The rounds of all strategies under one seed; they share the first one.

        Round by round, so that a strategy which has picked what another one did takes over what came of it.
        """
        runs: dict[str, list[Line]] = {name: [] for name in self.design.strategies}
        for number in range(self.design.rounds):
            for name, lines in runs.items():
                home = self.folder / (f"{name}-{seed}" if number else f"start-{seed}")
                path = home / f"round{number}.json"
                if not path.is_file():
                    self.told(f"{name}, seed {seed}, round {number + 1} of {self.design.rounds}")
                    line = self._round(name, seed, home, runs)
                    write_atomically(path, json.dumps(line).encode())
                lines.append(read_record(path, dict, "picked", "clicks", "adapter", "figures"))
            for name in runs if number > 1 else ():  # nobody goes on from the round before any more
                shutil.rmtree(self.folder / f"{name}-{seed}" / f"round{number - 1}", ignore_errors=True)
        return runs

    def _round(self, name: str, seed: int, home: Path, runs: Mapping[str, Sequence[Line]]) -> Line:
        """The next round of `name`, whose folder is `home`; `runs` are the rounds of all before it."""
        done = runs[name]
        number, before = len(done), [n for line in done for n in line["picked"]]
        rng, served = np.random.default_rng([seed, number]), self._untaught
        if done:
            served = self._segmenter(self.folder / done[-1]["adapter"] if done[-1]["adapter"] else None)
        if number == 0:
            picked, how = rng.permutation(len(self.pool))[: self.design.start].tolist(), "start"
        else:
            count = min(self.design.batch, self.design.budget - len(before))
            picked, how = self._picked(name, before, count, served, rng)
        for other, lines in runs.items():
            theirs = self.folder / f"{other}-{seed}" / f"round{number}"
            if _picks(lines[: number + 1]) == [*_picks(done), picked] and theirs.is_dir():
                return {**self._shared(lines[number], theirs, home), "how": how}
        costs = [self._annotated(n, served) for n in picked]
        frozen = [self._cost_frozen(n) for n in picked]
        learnt, what = self._learnt(home, seed, number, [*before, *picked])
        return {
            "picked": picked,
            "how": how,
            "clicks": float(sum(cost["noc90"] for cost in costs)),
            "clicks per study": float(np.mean([cost["noc90"] for cost in costs])),
            "clicks per study, frozen": float(np.mean([cost["noc90"] for cost in frozen])),
            "adapter": os.path.relpath(learnt, self.folder) if learnt else "",
            "what": what,
            "figures": self._measured(self._segmenter(learnt)),
        }

    def _shared(self, line: Line, theirs: Path, home: Path) -> Line:
        """Another strategy's round, made one of `home`: the same studies in the same order teach the same."""
        own = home / theirs.name
        shutil.rmtree(own, ignore_errors=True)  # of a round that was ended
        shutil.copytree(theirs, own)
        learnt = self.folder / line["adapter"]
        if learnt.is_relative_to(theirs):
            line = {**line, "adapter": os.path.relpath(own / learnt.relative_to(theirs), self.folder)}
        return line

    def _segmenter(self, adapter: Path | None) -> Segmenter:
        if adapter is None:
            return self.first
        model = load_adapter(self.sam, adapter)
        if model.dense_pe.device.type == "cpu":
            model.accelerate()
        return self.first.beside(model)

    @cached_property
    def _untaught(self) -> Segmenter:
        """Who answers before anything is learnt."""
        return self._segmenter(self.design.origin)

    def _study(self, case: Case) -> _Study:
        def read() -> _Study:
            volume, mask, names = case.read()
            wanted = self.design.labels or names
            return _Study(volume, mask, {value: name for value, name in names.items() if value in wanted})

        return self._studies.get(case.id, read)[0]

    def _annotated(self, n: int, segmenter: Segmenter) -> dict[str, float]:
        return self._asked(self.pool[n], segmenter)

    def _cost_frozen(self, n: int) -> dict[str, float]:
        if n not in self._frozen:
            self._frozen[n] = self._annotated(n, self._untaught)
        return self._frozen[n]

    def _asked(self, case: Case, segmenter: Segmenter) -> dict[str, float]:
        """`METRICS` of a study: sums of clicks and means of Dice over its objects."""
        study, rows = self._study(case), []
        for value in sorted(study.names):
            truth, told = study.mask == value, segmenter.about(study.names[value])
            for k in chosen_slices(truth, self.design.slices):
                rows.append(clicks(told, study.volume, truth[:, :, k], k, self.design.request.window))
        if not rows:
            return dict.fromkeys(METRICS, 0.0)
        return {
            metric: float((np.sum if metric.startswith("noc") else np.mean)([row[metric] for row in rows]))
            for metric in METRICS
        }

    def _measured(self, segmenter: Segmenter) -> dict[str, float]:
        """Means over the held-out studies in which something is to be found."""
        rows = [self._asked(case, segmenter) for case in self.held_out if self._study(case).names]
        if not rows:
            raise BadInputError("none of the patients who are held out has one of the labels")
        return {metric: round(float(np.mean([row[metric] for row in rows])), 5) for metric in METRICS}

    def _picked(
        self, name: str, before: Sequence[int], count: int, segmenter: Segmenter, rng: np.random.Generator
    ) -> tuple[list[int], str]:
        """The next studies, and by which strategy: another one where this one lacks something."""
        chooser, left = strategy(name), [n for n in range(len(self.pool)) if n not in set(before)]
        pool = Pool.unknown(len(left), len(before))
        if chooser.needs:
            prototypes = self._prototypes(before, segmenter) if "scores" in chooser.needs else {}
            seen = {n: self._examined(n, {}, segmenter) for n in before}
            seen |= {n: self._examined(n, prototypes, segmenter) for n in left}
            pool = self._known(seen, before, left)
        fit, _ = possible(chooser, pool)
        return [left[choice.n] for choice in choose(fit, pool, count, rng)], fit.name

    def _known(self, seen: Mapping[int, Examined], before: Sequence[int], left: Sequence[int]) -> Pool:
        looks = comparable(np.stack([seen[n].look for n in (*before, *left)]))
        covered, free = looks[: len(before)], looks[len(before) :]
        unsure, by_label = joined([seen[n].components for n in left])
        held = np.array([max(seen[n].held.values(), default=np.nan) for n in left], dtype=float)
        counts = {
            name: sum(name in self._study(self.pool[n]).names.values() for n in before) for name in by_label
        }
        return Pool(
            unsure, held, typicality(free), nearest(free, covered)[0], free, by_label, len(before), counts
        )

    def _examined(self, n: int, prototypes: Mapping[str, Prototypes], segmenter: Segmenter) -> Examined:
        volume = self._study(self.pool[n]).volume
        window = self.design.request.window
        return examine(segmenter, volume, prototypes, window=window, slices=LOOKED_AT)

    def _prototypes(self, before: Sequence[int], segmenter: Segmenter) -> dict[str, Prototypes]:
        """What the last labelled studies teach of each label."""
        found: dict[str, list[Prototypes]] = {}
        for n in before[-TEACHERS:]:
            study = self._study(self.pool[n])
            for value, name in study.names.items():
                key = n, name, segmenter.sam.encoder_digest
                if key not in self._taught:
                    self._taught[key] = learn(
                        segmenter, study.volume, study.mask == value, window=self.design.request.window
                    )
                if len(self._taught[key]):
                    found.setdefault(name, []).append(self._taught[key])
        return {name: Prototypes.joined(several) for name, several in found.items()}

    def _learnt(self, home: Path, seed: int, number: int, labelled: Sequence[int]) -> tuple[Path | None, str]:
        """The adapter that answers from now on, and what became of the round's candidate.

        It is asked about slices: so it is neither taught nor judged through volumes.
        """
        asked = self.design.request
        settings = asked.settings.model_copy(update={"follow": 0.0})
        request = replace(asked, settings=settings, seed=1000 * seed + number, measured=0)
        folder = home / f"round{number}"
        shutil.rmtree(folder, ignore_errors=True)  # of a round that was ended
        home.mkdir(mode=0o700, exist_ok=True)
        if not self.design.gate:
            cases = [self._nameless(n) for n in labelled]
            request = replace(request, start=self.design.origin)
            return train(self.sam, cases, (), folder, request).candidate, "trained"
        if number:
            last = home if number > 1 else self.folder / f"start-{seed}"
            shutil.copytree(last / f"round{number - 1}", folder)
        else:
            folder.mkdir(mode=0o700)
            key = hashlib.sha256(f"campaign {seed}".encode()).digest()
            write_atomically(folder / "splits.json.key", key)  # the same patients validate in all runs
        store = VersionStore(folder)
        seen = [Labelled(f"{n}", "labelled", partial(self._read, n)) for n in labelled]
        policy = self.design.policy.model_copy(update={"volumes": 0})
        plan = Plan(request, policy, self.design.origin, again=True, forgetting=())
        outcome = retrain(lambda: self.sam, seen, store, plan)
        current = store.current()
        return (current.folder if current else self.design.origin), outcome.what

    def _nameless(self, n: int) -> Nameless:
        case = self.pool[n]
        study, patient = (hashlib.sha256(text.encode()).hexdigest()[:16] for text in (case.id, case.patient))
        return Nameless(study, patient, partial(self._read, n))

    def _read(self, n: int) -> tuple[Volume, NDArray[np.uint8], dict[int, str]]:
        study = self._study(self.pool[n])
        return study.volume, study.mask, dict(study.names)


def _picks(lines: Sequence[Line]) -> list[list[int]]:
    return [line["picked"] for line in lines]


def clicks(
    segmenter: Segmenter, volume: Volume, truth: Mask, k: int, window: str = "auto"
) -> dict[str, float]:
    """`METRICS` of the object `truth` (I, J) on slice k: the annotator clicks until Dice is 0.9, or gives up.

    Dice after more clicks than were needed is that after the last one; a failure counts as the cap.
    """
    points: dict[bool, list[tuple[int, ...]]] = {True: [], False: []}
    session, curve = Session(), list[float]()
    click = first_click(truth)
    while True:
        points[click.positive].append((*click.index, k))
        prompt = Prompt(foreground=np.array(points[True]), background=np.array(points[False]))
        mask = segmenter.segment_slice(volume, prompt, k, window=window, session=session).mask[:, :, k] != 0
        curve.append(dice(mask, truth))
        further = next_click(truth, mask)
        if further is None or curve[-1] >= GOALS[-1] or len(curve) == CAP:
            break
        click = further
    told = {"1 pt": curve[0], "3 pts": curve[min(2, len(curve) - 1)]}
    for goal in GOALS:
        reached = [count for count, value in enumerate(curve, 1) if value >= goal]
        told[f"noc{round(100 * goal)}"] = float(reached[0] if reached else CAP)
    return told
