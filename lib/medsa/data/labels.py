"""Label sets (configs/labels/*.yaml): a name, an index, a colour and the SNOMED codes of each structure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from medsa.config import load_config
from medsa.errors import BadInputError


class Code(BaseModel):
    """A coded concept, written `[value, scheme, meaning]` in YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: Annotated[str, BeforeValidator(str)] = Field(max_length=16, pattern=r"^\S+$")
    scheme: str = Field(max_length=16, pattern=r"^\S+$")
    meaning: str = Field(min_length=1, max_length=64)

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        if isinstance(value, list) and len(value) == 3:
            return dict(zip(("value", "scheme", "meaning"), value, strict=True))
        return value


ANATOMY = Code(value="91723000", scheme="SCT", meaning="Anatomical Structure")
SIDES = {
    "left": Code(value="7771000", scheme="SCT", meaning="Left"),
    "right": Code(value="24028007", scheme="SCT", meaning="Right"),
}


class Label(BaseModel):
    """One structure: `index` is its value in masks, `color` RGB 0 to 255, `category` and `type` its codes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1, max_length=64)
    index: int = Field(ge=1, le=255)
    color: tuple[
        Annotated[int, Field(ge=0, le=255)],
        Annotated[int, Field(ge=0, le=255)],
        Annotated[int, Field(ge=0, le=255)],
    ]
    category: Code = ANATOMY
    type: Code
    laterality: Literal["left", "right"] | None = None


class LabelSet(BaseModel):
    """The labels an annotator may choose; names and indices are unique, names compare without case."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    labels: tuple[Label, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _unique(self) -> LabelSet:
        for what in ("index", "name"):
            values = [str(getattr(label, what)).casefold() for label in self.labels]
            if len(set(values)) < len(values):
                raise ValueError(f"two labels have the same {what}")
        return self

    @property
    def names(self) -> dict[int, str]:
        """Mask value -> name, in the order of the set."""
        return {label.index: label.name for label in self.labels}

    def find(self, name: str) -> Label | None:
        """The label called `name` (case and surrounding spaces do not matter), or None."""
        return next(
            (label for label in self.labels if label.name.casefold() == name.strip().casefold()), None
        )

    def by_name(self, name: str) -> Label:
        """The label called `name`; raises `BadInputError` naming the known ones."""
        label = self.find(name)
        if label is None:
            raise BadInputError(
                f"unknown label '{name}'; the label set '{self.name}' has: {_listed(self.names.values())}"
            )
        return label

    def by_index(self, index: int) -> Label:
        """The label with mask value `index`; raises `BadInputError` naming the known ones."""
        label = next((label for label in self.labels if label.index == index), None)
        if label is None:
            known = _listed(f"{label.index} {label.name}" for label in self.labels)
            raise BadInputError(f"no label has the value {index}; the label set '{self.name}' has: {known}")
        return label


def load_labels(name: str = "default") -> LabelSet:
    """The set in configs/labels/<name>.yaml; raises `ConfigurationError` naming the sets or the bad field."""
    return load_config("labels", name, LabelSet)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
