"""A model card beside an adapter version: what it is, learnt from and gives, and what it is not for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors import safe_open

from medsa.adapters.state import TENSORS, Card, read_card
from medsa.config import config_names
from medsa.errors import BadInputError, NotFoundError
from medsa.evaluation.evaluate import span
from medsa.evaluation.protocol import Case
from medsa.files import write_atomically
from medsa.sam import read_backbone

NAME = "model_card.md"
ANY = ("object",)
"""The labels of an adapter that was taught no particular ones."""
LIMITS = (
    "It is for research and for proposing masks that a person checks; it is no medical device.",
    "Its figures hold for data like those it was measured on: other scanners and patients may do worse.",
)


def write_model_card(
    folder: Path,
    *,
    data: str,
    training: str,
    figures: Mapping[str, Mapping[str, float]] | None = None,
    measured: str = "",
    limits: Sequence[str] = (),
) -> Path:
    """Write the card of the adapter version in `folder` beside it, from its card.json and what else is known.

    `data` says what it learnt from and `training` how; `figures` maps a prompt to Dice as "mean", "low" and
    "high" (95 %) and "n", of what `measured` says. Neither may name a patient. Raises as `read_card`.
    """
    path = folder / NAME
    text = model_card(read_card(folder), _stored(folder), data, training, figures or {}, measured, limits)
    write_atomically(path, text.encode())
    return path


def add_figures(folder: Path, title: str, asked: str, figures: Mapping[str, Mapping[str, float]]) -> Path:
    """Put Dice by prompt, of what `asked` says, under `title` into the model card of the version in `folder`.

    `figures` are as for `write_model_card`, `title` is one line; a table of the same title is replaced.
    Raises `NotFoundError` where there is no card, `BadInputError` for one that we did not write.
    """
    path = folder / NAME
    if not path.is_file():
        raise NotFoundError(f"'{folder}' holds no {NAME} that figures could be added to")
    head, limits, rest = path.read_text("utf-8").partition("\n## Limits\n")
    if not limits:
        raise BadInputError(f"'{path}' is no model card as medsa writes it")
    first, *tables = head.split("\n### ")
    kept = [table for table in tables if table.partition("\n")[0] != title]
    table = "\n".join([title, "", *_measured(figures, asked)])
    write_atomically(path, ("\n### ".join([first, *kept, table]) + limits + rest).encode())
    return path


def model_card(
    card: Card,
    stored: int,
    data: str,
    training: str,
    figures: Mapping[str, Mapping[str, float]],
    measured: str,
    limits: Sequence[str],
) -> str:
    """The card as Markdown; `stored` counts the numbers in the adapter's file."""
    method, known = card.method, card.backbone in config_names("backbones")
    backbone = read_backbone(card.backbone) if known else None
    name = backbone.title if backbone else card.backbone
    licence = f"The backbone's weights: {backbone.licence} ({backbone.source})." if backbone else ""
    prompts = ", ".join(card.trained_prompts or ()) or "none: all labels at once"
    counts = {side: len(studies) for side, studies in card.studies.items()}
    said = [
        ("method", f"{method.title} (`{method.name}`; {method.paper})"),
        (
            "backbone",
            f"{name}, weights {card.backbone_digest[:16] or 'random'}, input {card.image_size} px",
        ),
        ("slices at once", str(method.depth)),
        ("prompts", prompts),
        ("labels", "any object" if card.labels in ((), ANY) else ", ".join(card.labels)),
        ("size", f"{stored:,} numbers"),
        ("learnt from", data),
        ("studies", ", ".join(f"{count} {side}" for side, count in counts.items() if count)),
        ("training", training),
        ("begun with", card.parent or "the backbone"),
        (
            "made",
            f"{card.created:%Y-%m-%d}, medsa {card.medsa_version}"
            + (f", by `{card.made_by}`" if card.made_by else ""),
        ),
    ]
    lines = [f"# {method.title}, on {name}", "", *(f"- {what}: {value}" for what, value in said if value)]
    lines += ["", "## Dice", ""]
    lines += [*_measured(figures, measured), *_known(card.metrics)] or ["Nothing was measured.", ""]
    lines += ["## Limits", "", *(f"- {limit}" for limit in (*_limits(card), *limits, *LIMITS))]
    lines += [
        "",
        "## Licence",
        "",
        f"{licence} These weights were learnt on top of the backbone's, and are bound besides to the terms "
        "of the data that they learnt from.",
    ]
    return "\n".join(lines) + "\n"


def kind_of(case: Case) -> str:
    """What a study is, in words: "MR volumes", "images"; raises what reading raises."""
    volume = case.read()[0]
    what = "volumes" if volume.shape[2] > 1 else "images"
    return f"{volume.modality} {what}" if volume.modality else what


def _measured(figures: Mapping[str, Mapping[str, float]], measured: str) -> list[str]:
    if not figures:
        return []
    rows = [
        f"| {prompt} | {value['mean']:.3f} | {span(value)} | {value['n']:.0f} |"
        for prompt, value in figures.items()
    ]
    head = ["| prompt | Dice | 95 % | answers |", "| --- | ---: | ---: | ---: |"]
    return [*([f"{measured}:", ""] if measured else []), *head, *rows, ""]


def _known(metrics: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The figures of card.json; they have no intervals."""
    if not metrics:
        return []
    columns = list(dict.fromkeys(name for values in metrics.values() for name in values))
    rows = [
        f"| {name} | {' | '.join(f'{values[c]:.3f}' if c in values else '–' for c in columns)} |"
        for name, values in metrics.items()
    ]
    head = [f"| | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    return ["While it was made:", "", *head, *rows, ""]


def _limits(card: Card) -> list[str]:
    found = []
    if not card.method.prompts:
        found.append("It knows its labels alone, and finds them without being asked; it hears no click.")
    elif card.labels not in ((), ANY):
        found.append("Objects other than its labels are answered too, but were not what it was taught last.")
    if card.method.depth > 1:
        found.append(f"It was taught slabs of {card.method.depth} slices: unlike spacings were not tried.")
    if not card.metrics:
        found.append("No held-out patient chose or measured it while it was made.")
    elif "after" in card.metrics:
        found.append("Held-out patients chose the epoch that was kept: the figures are a little too good.")
    return found


def _stored(folder: Path) -> int:
    with safe_open(folder / TENSORS, framework="pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
