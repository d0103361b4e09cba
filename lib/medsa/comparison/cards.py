"""A model card for each adapter that a comparison trained, with its own figures."""

from __future__ import annotations

from collections.abc import Sequence

from medsa.comparison.compare import Comparison, Result
from medsa.comparison.report import said
from medsa.evaluation.evaluate import summary
from medsa.training.model_card import NAME, kind_of, write_model_card


def write_cards(comparison: Comparison, results: Sequence[Result]) -> None:
    """Write them beside the adapters that have none yet; entrants that learnt nothing get none.

    A card stays as it is when the comparison goes on: others may have added their figures to it.
    """
    plan, kind = comparison.plan, kind_of(comparison.data.training[0])
    for result in results:
        folder = comparison.candidate(result.entrant, result.seed)
        studies = comparison.studies(result.entrant, result.seed)
        if not studies or (folder / NAME).is_file():
            continue
        warm = plan.warm_start and plan.begins_warm(result.entrant)
        prompts = summary(result.entries)
        write_model_card(
            folder,
            data=f"{kind}, {studies} labelled studies",
            training=f"{result.steps} steps, {result.seconds / 60:.1f} minutes, settings '{plan.settings}', "
            f"seed {result.seed}" + (", after a shared warm start" if warm else ""),
            figures={said(name): prompts[name]["dice"] for name in prompts if name != "numbers"},
            measured=f"{len(comparison.held)} held-out studies, which chose nothing",
        )
