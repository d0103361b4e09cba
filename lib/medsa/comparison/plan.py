"""What is compared, as data (configs/experiments): entrants, a budget, a protocol, and a paper's figures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from medsa.adapters.method import Method, read_method
from medsa.config import config_names, explain
from medsa.errors import ConfigurationError, NotFoundError
from medsa.evaluation.asking import Protocol
from medsa.training.length import Length
from medsa.training.settings import Settings


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Budget(_Data):
    """How long each entrant is trained: `minutes` of training, `steps` or `epochs`, one of them."""

    minutes: float | None = Field(None, gt=0)
    steps: int | None = Field(None, gt=0)
    epochs: int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if sum(value is not None for value in (self.minutes, self.steps, self.epochs)) != 1:
            raise ValueError("give one of minutes, steps and epochs")
        return self

    @property
    def length(self) -> Length:
        """The same as the engines take it."""
        return Length(self.epochs, self.minutes, self.steps)

    @property
    def unit(self) -> str:
        """What it counts: minutes, steps or epochs."""
        return next(name for name in ("minutes", "steps", "epochs") if getattr(self, name) is not None)

    def __str__(self) -> str:
        return f"{getattr(self, self.unit):g} {self.unit}"


class WarmStart(Budget):
    """What is trained once, and what the others start from; a method of parts of the base alone."""

    method: str = "decoder_prompt"

    @model_validator(mode="after")
    def _of_parts(self) -> WarmStart:
        if not _known(self.method).only_parts:
            raise ValueError(f"others cannot be placed on {self.method}: take decoder_prompt or decoder_only")
        return self


class Asked(_Data):
    """The protocol of `medsa evaluate`, and of how many held-out `cases` at most (None: all).

    `slabs`: slices are seen in their slabs by models with depth, else alone.
    """

    prompts: str = "1,3,10,box,box0.75,box0.5"
    seeds: int = Field(1, gt=0)
    slices: int = Field(2, gt=0)
    volumes: bool = False
    deepest: bool = False
    slabs: bool = False
    tolerance: float = Field(2.0, ge=0)
    cases: int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _understood(self) -> Asked:
        if not self.protocol().names:
            raise ValueError("noc alone keeps no mask to be shown: ask for a click or a box, too")
        return self

    def protocol(self) -> Protocol:
        """As `medsa evaluate` takes it; raises `BadInputError` for an unknown prompt."""
        found = Protocol.of(self.prompts, deepest=self.deepest, tolerance=self.tolerance)
        return replace(found, slabs=self.slabs, background=True)


def _measured(value: object) -> object:
    return {"dice": value} if isinstance(value, int | float) else value


Measured = Annotated[dict[Literal["dice", "iou", "hd95", "nsd"], float], BeforeValidator(_measured)]
Figures = dict[str, dict[str, Measured]]
"""prompt -> label (or "average") -> metric, where a number alone is Dice."""


class Entrant(_Data):
    """One line of the table: a method, and what is special about it here.

    `method` is a name of configs/methods; `change` replaces fields of it, as they stand in its file, and
    `settings` fields of the plan's settings. `backbone` stands for the plan's. `start`: "warm" is the plan's
    warm start if it has one, else the plan's `start`; those without prompts begin on the backbone. `train`
    false leaves it as it starts. `paper` is what the paper says of it.
    """

    name: str = Field(pattern=r"^[^/\\]+$", max_length=60)
    method: str
    change: dict[str, Any] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    backbone: str | None = None
    start: Literal["warm", "starter", "none"] = "warm"
    train: bool = True
    paper: Figures = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        value = {"method": value} if isinstance(value, str) else value
        if not isinstance(value, Mapping):
            raise ValueError("an entrant is the name of a method, or a mapping")
        return {"name": value.get("method"), **value}

    @model_validator(mode="after")
    def _there(self) -> Entrant:
        if self.backbone is not None:
            _backbone(self.backbone)
        self.read()
        self.changed(Settings(name="", title=""))
        if self.promptless and not self.train:
            raise ValueError(f"{self.method} without training knows no label: leave train out")
        return self

    @property
    def promptless(self) -> bool:
        """Whether it segments all classes at once, unasked."""
        return not self.read().prompts

    def read(self) -> Method:
        """The method with its changes; raises `ValueError` for what is none."""
        method = _known(self.method)
        try:
            return Method.model_validate(_merged(method.model_dump(), self.change))
        except ValidationError as error:
            raise ValueError(f"change: {explain(error)}") from None

    def changed(self, settings: Settings) -> Settings:
        """The plan's settings with the entrant's changes; raises `ValueError` for what is none."""
        try:
            return Settings.model_validate(_merged(settings.model_dump(), self.settings))
        except ValidationError as error:
            raise ValueError(f"settings: {explain(error)}") from None

    @property
    def slug(self) -> str:
        """Its name as a folder's."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-") or "entrant"


class Plan(_Data):
    """A comparison. `data` names a data set (configs/datasets) that `--data` gives the folder of.

    `labels` are names or values, none for all; a part `share` of the patients is held out. `image_size` is
    the side of the models' input in pixels, none for the backbones' own. `seeds` are how often each entrant
    is trained, `start` what they begin with. `others` are figures of a paper's methods that are not run.
    """

    title: str
    paper: str = ""
    data: str = ""
    labels: tuple[str | int, ...] = ()
    share: float = Field(0.25, gt=0, lt=1)
    backbone: str = "lite_medsam"
    image_size: int | None = Field(None, ge=64, multiple_of=32)
    settings: str = "default"
    start: Literal["starter", "none"] = "none"
    budget: Budget
    warm_start: WarmStart | None = None
    seeds: int = Field(1, gt=0)
    asked: Asked = Asked()
    entrants: tuple[Entrant, ...] = Field(min_length=1)
    others: dict[str, Figures] = Field(default_factory=dict)
    note: str = ""

    @model_validator(mode="after")
    def _sensible(self) -> Plan:
        _backbone(self.backbone)
        if self.settings not in config_names("training"):
            raise ValueError(f"unknown settings '{self.settings}'; choose one of: {_listed('training')}")
        slugs = [entrant.slug for entrant in self.entrants]
        if twice := sorted({slug for slug in slugs if slugs.count(slug) > 1}):
            raise ValueError(f"two entrants are called '{twice[0]}': give them names")
        if self.mixed and self.budget.epochs is not None:
            raise ValueError("the budget is in epochs, so the warm start must be, too")
        return self

    def begins_warm(self, entrant: Entrant) -> bool:
        """Whether an entrant begins with the plan's warm start, where it has one."""
        return entrant.start == "warm" and not entrant.promptless

    @property
    def mixed(self) -> bool:
        """Whether the warm start is named in another unit than the budget."""
        return self.warm_start is not None and self.warm_start.unit != self.budget.unit

    def length_of(self, entrant: Entrant, took: Length | None = None) -> Length:
        """How long an entrant is trained; one that does not begin warm gets the warm start's length besides.

        `took` is what that was in minutes and in steps, for a plan that is `mixed`.
        """
        length, warm = self.budget.length, self.warm_start
        if warm is None or self.begins_warm(entrant):
            return length
        more = took or warm.length

        def both(one: float | None, other: float | None) -> float | None:
            return one if one is None or other is None else one + other

        epochs, steps = both(length.epochs, more.epochs), both(length.steps, more.steps)
        return Length(
            None if epochs is None else int(epochs),
            both(length.minutes, more.minutes),
            None if steps is None else int(steps),
        )


def read_plan(path: Path) -> Plan:
    """The plan in a file; raises `NotFoundError`, or `ConfigurationError` that names file and field."""
    if not path.is_file():
        raise NotFoundError(f"there is no file '{path}'; configs/experiments holds examples")
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ConfigurationError(f"'{path.name}' is no YAML file") from None
    if not isinstance(content, Mapping):
        raise ConfigurationError(f"'{path.name}' holds no plan: it needs title, budget and entrants")
    return plan_of(content, path.name)


def plan_of(content: Mapping[str, Any], where: str) -> Plan:
    """The plan of what a file holds; `where` names it in the `ConfigurationError` of a wrong one."""
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        raise ConfigurationError(f"{where}: {explain(error)}") from None


def _known(name: str) -> Method:
    if name not in config_names("methods"):
        raise ValueError(f"unknown method '{name}'; choose one of: {_listed('methods')}")
    return read_method(name)


def _backbone(name: str) -> None:
    if name not in config_names("backbones"):
        raise ValueError(f"unknown backbone '{name}'; choose one of: {_listed('backbones')}")


def _listed(kind: str) -> str:
    return ", ".join(config_names(kind))


def _merged(whole: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """`whole` with the values of `change`, mapping by mapping."""
    return {**whole} | {
        name: _merged(whole[name], value)
        if isinstance(value, Mapping) and isinstance(whole.get(name), Mapping)
        else value
        for name, value in change.items()
    }
