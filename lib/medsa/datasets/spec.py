"""What a public data set is, as data (configs/datasets): its files, splits, labels, origin and terms."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from medsa.config import config_names, load_config
from medsa.data.labels import ANATOMY, Code
from medsa.data.window import check_window
from medsa.errors import BadInputError, ConfigurationError

KIND = "datasets"
_FIELD = re.compile(r"\{(\w+)(?::((?:[^{}]|\{\d+(?:,\d*)?\})+))?\}")


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Structure(_Data):
    """One label: its value in masks, its name, its codes as in `medsa.data.labels`."""

    index: int = Field(ge=1, le=255)
    name: str = Field(min_length=1, max_length=64)
    category: Code = ANATOMY
    type: Code
    laterality: Literal["left", "right"] | None = None


class Part(_Data):
    """Images and labels of one `split`, as patterns of paths below the data set's folder.

    `{word}` stands for a part of one folder's or file's name, the same one wherever it occurs, `{word:regex}`
    for one of that form. Of several patterns of `label` the first that is there counts. `count` is how many
    pairs the whole download has, where that is known. `patient` stands for the data set's. `reading` says
    what a label file is: a "mask" on the image's grid, or "polygons" in XML, as DDTI has them.
    """

    split: str = Field("train", pattern=r"^\w+$")
    image: str
    label: Annotated[tuple[str, ...], BeforeValidator(lambda v: (v,) if isinstance(v, str) else tuple(v))]
    count: int | None = Field(None, gt=0)
    patient: str = ""
    reading: Literal["mask", "polygons"] = "mask"

    @model_validator(mode="after")
    def _same_words(self) -> Part:
        named = set(words(self.image))
        for label in self.label:
            if missing := set(words(label)) - named:
                raise ValueError(f"the label's {{{missing.pop()}}} does not occur in the image's path")
        return self


class Dataset(_Data):
    """A public data set.

    `kind`: "pairs" are those of `parts`, below one of `roots`; "decathlon" is what a dataset.json lists, and
    its names are taken where `labels` is empty. `patient` says with the words of the patterns whose image it
    is: patients are split, never images. `values` maps values of label files to `labels`; 0 and `others` are
    background. `colours` does so for label pictures in colour. Without both, values are labels. `channel` is
    taken of images of four dimensions.
    """

    name: str
    title: str
    modality: str = ""
    window: str = "auto"
    kind: Literal["pairs", "decathlon"] = "pairs"
    roots: tuple[str, ...] = ("",)
    parts: tuple[Part, ...] = ()
    patient: str = "{case}"
    channel: int = Field(0, ge=0)
    values: dict[int, int] = Field(default_factory=dict)
    others: tuple[int, ...] = ()
    colours: dict[int, tuple[int, int, int]] = Field(default_factory=dict)
    labels: tuple[Structure, ...] = ()
    count: int | None = Field(None, gt=0, description="pairs of a decathlon data set")
    home: str
    obtain: str
    terms: str
    note: str = ""

    @field_validator("window")
    @classmethod
    def _window(cls, window: str) -> str:
        try:
            check_window(window)
        except BadInputError as error:
            raise ValueError(str(error)) from None
        return window

    @model_validator(mode="after")
    def _whole(self) -> Dataset:
        if (self.kind == "pairs") != bool(self.parts):
            raise ValueError("a data set of pairs has parts, one of the decathlon has none")
        known = {label.index for label in self.labels}
        if unknown := ({*self.values.values(), *self.colours} - known if self.labels else set()):
            raise ValueError(f"no label has the value {unknown.pop()}")
        for part in self.parts:
            if missing := set(words(part.patient or self.patient)) - set(words(part.image)):
                raise ValueError(f"the patient's {{{missing.pop()}}} does not occur in the image's path")
        return self

    @property
    def names(self) -> dict[int, str]:
        """Names by value."""
        return {label.index: label.name for label in self.labels}

    @property
    def splits(self) -> tuple[str, ...]:
        """The official splits, in their order."""
        return tuple(dict.fromkeys(part.split for part in self.parts)) or ("train",)


def words(pattern: str) -> list[str]:
    """The words of a pattern, each once."""
    return list(dict.fromkeys(found[1] for found in _FIELD.finditer(pattern)))


def expression(pattern: str) -> re.Pattern[str]:
    """A pattern as a regular expression with a group for each word; case counts."""
    parts, last, seen = [], 0, set[str]()
    for found in _FIELD.finditer(pattern):
        parts.append(re.escape(pattern[last : found.start()]))
        word, form = found[1], found[2] or r"[^/]+?"
        parts.append(f"(?P={word})" if word in seen else f"(?P<{word}>{form})")
        seen.add(word)
        last = found.end()
    return re.compile("".join(parts) + re.escape(pattern[last:]))


def starred(pattern: str) -> str:
    """A pattern as a glob that finds at least what it means."""
    return _FIELD.sub("*", pattern)


def filled(pattern: str, values: dict[str, str]) -> str:
    """A pattern with its words replaced."""
    return _FIELD.sub(lambda found: values[found[1]], pattern)


def shown(pattern: str) -> str:
    """A pattern as a person reads it."""
    return _FIELD.sub(lambda found: f"<{found[1]}>", pattern)


def dataset_names() -> list[str]:
    """All of configs/datasets."""
    return config_names(KIND)


def read_dataset(name: str) -> Dataset:
    """The data set of that name; raises `ConfigurationError` that names them all."""
    if name not in dataset_names():
        raise ConfigurationError(f"unknown data set '{name}'; there are: {', '.join(dataset_names())}")
    return load_config(KIND, name, Dataset)
