"""A model card for each adapter that a comparison trained, with the figures of its report."""

from __future__ import annotations

from medsa.adapters.state import CARD
from medsa.comparison.compare import Comparison
from medsa.comparison.figures import Figures
from medsa.comparison.report import said
from medsa.training.model_card import kind_of, write_model_card


def write_cards(comparison: Comparison, figures: Figures) -> None:
    """Write them beside the adapters; entrants that have none (a U-Net, the backbone alone) get none."""
    plan, data = comparison.plan, comparison.data
    kind = kind_of(data.training[0])
    for entrant, line in zip(plan.entrants, figures["entrants"], strict=True):
        prompts = {
            said(name): values["dice"] for name, values in line["summary"].items() if name != "numbers"
        }
        for seed, folder in comparison.candidates(entrant):
            if (folder / CARD).is_file():
                write_model_card(
                    folder,
                    data=f"{kind}, {len(data.training)} labelled studies",
                    training=f"{line['steps'][seed]} steps, {line['minutes'][seed]:g} minutes, settings "
                    f"'{plan.settings}', seed {seed}"
                    + (", after a shared warm start" if plan.warm_start else ""),
                    figures=prompts,
                    measured=f"{len(comparison.held)} held-out studies, which chose nothing",
                )
