"""A plan carried out: each entrant trained and asked alike; what is done is kept when it is stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from medsa.adapters.inject import AdaptedSam, adapt
from medsa.adapters.method import read_method
from medsa.adapters.state import CARD, load_adapter, read_card, starter_adapter
from medsa.comparison.plan import Asked, Entrant, Plan, WarmStart
from medsa.errors import BadInputError, CancelledError
from medsa.evaluation.evaluate import Entry, Wanted, evaluate
from medsa.evaluation.protocol import Case
from medsa.evaluation.unasked import evaluate_unasked
from medsa.files import read_record, write_atomically
from medsa.sam import Sam, load_sam
from medsa.segmenter import Segmenter
from medsa.segmenter.classes import PromptlessSam
from medsa.training.classes import promptless, train_classes
from medsa.training.items import evenly
from medsa.training.length import Length
from medsa.training.loop import CHECKPOINT, Progress
from medsa.training.settings import Settings, read_settings
from medsa.training.train import CANDIDATE, DECODER, TRAINED, Request, Trained, train

PLAN, RECORD, RESULT = "plan.json", "record", "result.json"
WARM = "_warm-start"
"""The folder of the plan's warm start; no entrant's own name comes to one with an underscore."""

Told = Callable[[str, str, float], None]
"""Told of whom (an entrant's name) what is being done ("training", ...), and which part (0..1) is done."""


@dataclass(frozen=True)
class Data:
    """Cases with hashed ids: those that train, those `held` out; labels by value; the intensity `window`.

    `files` is a digest of what they are read from.
    """

    training: Sequence[Case]
    held: Sequence[Case]
    labels: Mapping[int, str]
    window: str = "auto"
    files: str = ""


@dataclass(frozen=True)
class Result:
    """What came of an entrant under one seed: `counts` as `AdaptedSam.counts`, and all entries."""

    entrant: Entrant
    seed: int
    steps: int
    seconds: float
    counts: Mapping[str, Any]
    entries: Sequence[Entry]


class Comparison:
    """A plan on data, in a folder of its own (0700).

    `stop` is asked often, and then `CancelledError` raised; the same comparison goes on where it was. Raises
    `BadInputError` for a folder that holds another comparison, and what training and evaluation raise.
    """

    def __init__(
        self,
        plan: Plan,
        data: Data,
        folder: Path,
        *,
        device: str = "cpu",
        load: Callable[..., Sam] = load_sam,
        told: Told = lambda _who, _what, _part: None,
        report: Callable[[Progress], None] = lambda _: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.plan, self.data, self.folder, self.device = plan, data, folder, device
        self.load, self.told, self.report, self.stop = load, told, report, stop
        self.held = evenly(data.held, plan.asked.cases or len(data.held))
        self._sams: dict[str, Sam] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._claim()

    def go(self) -> list[Result]:
        """The results of all entrants and seeds, in the plan's order; who learns nothing has one seed.

        One seed after another: what was stopped has compared all entrants on the first ones.
        """
        seeds, entrants = range(self.plan.seeds), self.plan.entrants
        done = {
            (entrant.slug, seed): self._result(entrant, seed)
            for seed in seeds
            for entrant in entrants
            if seed == 0 or _learns(entrant)
        }
        return [
            done[entrant.slug, seed] for entrant in entrants for seed in seeds if (entrant.slug, seed) in done
        ]

    def sam(self, entrant: Entrant) -> Sam:
        """The backbone of an entrant, loaded once; the one before it is let go."""
        name = entrant.backbone or self.plan.backbone
        if name not in self._sams:
            self._sams = {name: self.load(name, device=self.device, image_size=self.plan.image_size)}
        return self._sams[name]

    def segmenter(self, entrant: Entrant, seed: int) -> Segmenter:
        """The trained entrant, ready for prompts."""
        sam = self.sam(entrant)
        folder = self.candidate(entrant, seed) if _learns(entrant) else self._start(entrant)
        model: Sam | AdaptedSam = sam
        if folder is not None:
            model = load_adapter(sam, folder)
        elif entrant.method != "sam":
            model = adapt(sam, entrant.read()).to(sam.dense_pe.device).eval()
        segmenter = Segmenter(model)
        if sam.accelerated:
            segmenter.accelerate()
        return segmenter

    def classifier(self, entrant: Entrant, seed: int) -> PromptlessSam:
        """The trained entrant that takes no prompt."""
        return promptless(self.sam(entrant), self.candidate(entrant, seed))

    def candidate(self, entrant: Entrant, seed: int) -> Path:
        """The folder that training leaves an entrant's adapter in."""
        return self._place(entrant, seed) / CANDIDATE

    def studies(self, entrant: Entrant, seed: int) -> int:
        """How many studies an entrant has learnt from; a decoder alone from what may be embedded."""
        folder = self.candidate(entrant, seed)
        return len(read_card(folder).studies.get("training", ())) if (folder / CARD).is_file() else 0

    def _claim(self) -> None:
        """Write what is compared, or check that it is the same; entrants and seeds may be more or fewer.

        What an older record does not say is taken to be as it is now.
        """
        apart = {"entrants", "seeds", "others", "title", "paper", "note"}
        said = self.plan.model_dump(mode="json", exclude=apart)
        said["labels"] = {str(value): name for value, name in self.data.labels.items()}
        said["cases"] = [sorted(case.id for case in side) for side in (self.data.training, self.data.held)]
        said |= {"window": self.data.window, "files": self.data.files}
        said["settings' values"] = _settings(self.plan).model_dump(mode="json")
        path = self.folder / PLAN
        known = read_record(path, dict, "asked") if path.is_file() else said
        known["asked"] = Asked.model_validate(known["asked"]).model_dump(mode="json")
        if changed := sorted(name for name in said if known.get(name, said[name]) != said[name]):
            raise BadInputError(
                f"'{self.folder}' holds a comparison with other {' and '.join(changed)}: go on with the "
                "same, or choose another --output"
            )
        write_atomically(path, json.dumps(said, indent=1).encode())

    def _place(self, entrant: Entrant, seed: int) -> Path:
        return self.folder / (f"{entrant.slug}_{seed}" if seed else entrant.slug)

    def _result(self, entrant: Entrant, seed: int) -> Result:
        place = self._place(entrant, seed)
        path, spec = place / RESULT, _spec(entrant)
        if path.is_file():
            known = read_record(path, dict, "spec", "steps", "seconds", "counts", "entries")
            _check_same(known.pop("spec"), spec, place)
            return Result(entrant, seed, **known)
        place.mkdir(mode=0o700, exist_ok=True)
        done = self._trained(entrant, seed)
        entries = self._evaluated(entrant, seed)
        found = {**done, "counts": self._counts(entrant, seed), "entries": entries}
        write_atomically(path, json.dumps({"spec": spec, **found}).encode())
        (place / RECORD).unlink(missing_ok=True)
        return Result(entrant, seed, **found)

    def _trained(self, entrant: Entrant, seed: int) -> dict[str, Any]:
        """Steps and seconds, once it is trained."""
        if not _learns(entrant):
            return {"steps": 0, "seconds": 0.0}
        request = Request(
            entrant.read(),
            self.data.labels,
            self.plan.length_of(entrant, self._took(entrant)),
            entrant.changed(_settings(self.plan)),
            self._start(entrant),
            seed,
            self.data.window,
            measured=0,
        )
        place = self._place(entrant, seed)
        return self._run(entrant.name, _trainer(entrant), self.sam(entrant), place, request, _spec(entrant))

    def _run(
        self,
        who: str,
        trainer: Callable[..., Trained],
        sam: Sam,
        place: Path,
        request: Request,
        spec: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Steps and seconds of a run in `place`, done now if it never was; `spec` is whose it is."""
        path = place / TRAINED
        if not path.is_file():
            begun = (place / CHECKPOINT).is_file() or (place / DECODER / CHECKPOINT).is_file()
            done = trainer(
                sam, self.data.training, (), place, request,
                resume=begun, told=partial(self.told, who), report=self.report, stop=self.stop,
            )  # fmt: skip
            done.keep(path, spec=spec)
        known = read_record(path, dict, "steps", "seconds")
        _check_same(known.pop("spec", None), spec, place)
        return known

    def _start(self, entrant: Entrant) -> Path | None:
        """The version that an entrant begins with; the warm start is trained when it is first needed."""
        plan, backbone = self.plan, entrant.backbone or self.plan.backbone
        if entrant.promptless or entrant.start == "none" or entrant.method == "sam":
            return None
        base = starter_adapter(backbone) if "starter" in (entrant.start, plan.start) else None
        if entrant.start == "starter" and base is None:
            raise BadInputError(f"{entrant.name}: no starter adapter comes with {backbone}")
        if entrant.start == "starter" or plan.warm_start is None:
            return base
        return self._warm(entrant, plan.warm_start)[0] / CANDIDATE

    def _warm(self, entrant: Entrant, warm: WarmStart) -> tuple[Path, dict[str, Any]]:
        """Folder, steps and seconds of the warm start on an entrant's backbone, trained if it never was."""
        plan, backbone = self.plan, entrant.backbone or self.plan.backbone
        place = self.folder / (WARM if entrant.backbone is None else f"{WARM}-{backbone}")
        base = starter_adapter(backbone) if plan.start == "starter" else None
        request = Request(
            warm.method, self.data.labels, warm.length, _settings(plan), base,
            window=self.data.window, measured=0,
        )  # fmt: skip
        spec = {"content": read_method(warm.method).model_dump(mode="json")}
        return place, self._run("warm start", train, self.sam(entrant), place, request, spec)

    def _took(self, entrant: Entrant) -> Length | None:
        """Minutes and steps of the warm start, where they are needed to know how long an entrant learns."""
        warm = self.plan.warm_start
        if warm is None or not self.plan.mixed or self.plan.begins_warm(entrant):
            return None
        done = self._warm(entrant, warm)[1]
        return Length(None, done["seconds"] / 60, int(done["steps"]))

    def _evaluated(self, entrant: Entrant, seed: int) -> list[Entry]:
        asked, record = self.plan.asked, self._place(entrant, seed) / RECORD

        def progress(done: int, most: int) -> None:
            if self.stop():
                raise CancelledError("stopped while measuring; what was measured is kept")
            self.told(entrant.name, "measuring", done / max(1, most))

        slices = None if asked.volumes else asked.slices
        wanted = Wanted(
            asked.protocol(), {"name": entrant.name}, asked.seeds, slices, self.data.labels, self.data.window
        )
        if entrant.promptless:
            classifier = self.classifier(entrant, seed)
            return evaluate_unasked(classifier, self.held, wanted, record, progress)
        segmenter = self.segmenter(entrant, seed)
        model = {"backbone": segmenter.sam.config.name, "adapter": segmenter.sam.adapter_digest}
        return evaluate(segmenter, self.held, replace(wanted, model=model), record, progress)

    def _counts(self, entrant: Entrant, seed: int) -> dict[str, Any]:
        if entrant.promptless:
            return self.classifier(entrant, seed).model.counts()
        return adapt(self.sam(entrant), entrant.read()).counts()


def _settings(plan: Plan) -> Settings:
    """The plan's settings; with a warm start nobody teaches the decoder first once more."""
    settings = read_settings(plan.settings)
    return settings.model_copy(update={"decoder_first": 0.0}) if plan.warm_start else settings


def _learns(entrant: Entrant) -> bool:
    return entrant.train and entrant.method != "sam"


def _spec(entrant: Entrant) -> dict[str, Any]:
    """What makes an entrant's result its own."""
    content = entrant.read().model_dump(mode="json")
    return {**entrant.model_dump(mode="json", exclude={"paper"}), "content": content}


def _check_same(known: Mapping[str, Any] | None, spec: Mapping[str, Any], place: Path) -> None:
    """Raise `BadInputError` where what is `known` of a run says otherwise; older ones say less."""
    said = {"settings": {}} | dict(known or {})  # before entrants had any, they had none of their own
    if any(said.get(name, value) != value for name, value in spec.items()):
        raise BadInputError(
            f"'{place.name}' was trained otherwise: give the entrant another name, or remove {place}"
        )


def _trainer(entrant: Entrant) -> Callable[..., Trained]:
    return train_classes if entrant.promptless else train
