"""Strategies: a pool of studies in, the worth of each as the next one out. Small, pure, in one registry.

Noise: the scores' logarithm gets Gumbel noise that decays with the number of labelled studies, so that early
choices are spread and late ones follow the score (power sampling: Kirsch et al., "Stochastic batch
acquisition", TMLR 2023; scheduled so, and stratified by class, in ClaSP-PE of the nnActive authors).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from medsa.active.coverage import Looks, distances
from medsa.errors import NotFoundError

Floats = NDArray[np.float64]

FIRST, LAST, HORIZON = 1.0, 100.0, 40
"""Sharpness of a noisy choice with no labelled study, and from so many on."""
ENOUGH = 0.5
"""Part of the pool that must be known for a strategy to choose among it."""
UNKNOWN = -1e6
"""Below whatever is drawn of a study that something is known of."""
HELD = 0.5
"""A study seems to hold a label from this likeness on."""


@dataclass(frozen=True)
class Pool:
    """N studies that may come next; NaN where something is not known of one.

    `unsure` (N,) 0..1, and `by_label` for each label; `held` (N,) 0..1, how sure it is that a label is there;
    `typical` (N,); `novel` (N,) the distance to the nearest study that is labelled or chosen, infinite
    without any; `looks` (N, D), rows of NaN where unknown; `labelled` how many studies have a label, and
    `counts` how many have each.
    """

    unsure: Floats
    held: Floats
    typical: Floats
    novel: Floats
    looks: Looks
    by_label: Mapping[str, Floats] = field(default_factory=dict)
    labelled: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.unsure)

    @classmethod
    def unknown(cls, size: int, labelled: int = 0) -> Pool:
        """So many studies of which nothing is known."""
        nan = np.full(size, np.nan)
        return cls(nan, nan, nan, nan, np.full((size, 1), np.nan, np.float32), labelled=labelled)

    def without(self, n: int) -> Pool:
        """The pool when study n is chosen: what looks like it is less novel."""
        if np.isnan(self.looks[n]).any():
            return self
        return replace(self, novel=np.fmin(self.novel, distances(self.looks, self.looks[n : n + 1])[:, 0]))

    def knows(self, what: str) -> NDArray[np.bool_]:
        """(N,) of which studies "scores" or "looks" are known; where no label was found there is no doubt."""
        scored = np.isfinite(self.unsure) | np.isfinite(self.held)
        return scored if what == "scores" else np.isfinite(self.typical)


@dataclass(frozen=True)
class Worth:
    """`score` (N,) is what is told, the largest of `drawn` (N,) is chosen; NaN: after all others."""

    score: Floats
    drawn: Floats


@dataclass(frozen=True)
class Choice:
    """Study `n` of the pool, its score, and its place (from 1) among the scores of the pool."""

    n: int
    score: float
    rank: int


class Strategy(ABC):
    """`needs` are what must be known of a study: "scores", "looks". `why` tells an annotator what it does.

    `by_chance`: the score says nothing about which one is chosen, so that a choice made before is as good.
    """

    name: ClassVar[str]
    why: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    by_chance: ClassVar[bool] = False

    @abstractmethod
    def worth(self, pool: Pool, rng: np.random.Generator) -> Worth:
        """What each study is worth as the next one."""


class Random(Strategy):
    name, why = "random", "A random image that has no label yet"
    by_chance = True

    def worth(self, pool: Pool, rng: np.random.Generator) -> Worth:
        return Worth(np.full(len(pool), np.nan), rng.random(len(pool)))


class First(Strategy):
    name, why = "first", "The first image that has no label yet"

    def worth(self, pool: Pool, rng: np.random.Generator) -> Worth:  # noqa: ARG002 - nothing is drawn
        return Worth(np.full(len(pool), np.nan), -np.arange(len(pool), dtype=float))


class ForegroundRandom(Strategy):
    name, why = "foreground_random", "A random image among those that seem to hold a label"
    needs = frozenset({"scores"})

    def worth(self, pool: Pool, rng: np.random.Generator) -> Worth:
        return Worth(pool.held, rng.random(len(pool)) + (pool.held > HELD))


class Uncertainty(Strategy):
    name, why = "uncertainty", "The image that the model is least sure of"
    needs = frozenset({"scores"})

    def worth(self, pool: Pool, rng: np.random.Generator) -> Worth:  # noqa: ARG002 - nothing is drawn
        return Worth(pool.unsure, pool.unsure)


class Diversity(Strategy):
    name, why = "diversity", "The image that looks least like those that are labelled"
    needs = frozenset({"looks"})

    def worth(self, pool: Pool, rng: np.random.Generator) -> Worth:  # noqa: ARG002 - nothing is drawn
        found = pool.novel if np.isfinite(pool.novel).any() else pool.typical
        return Worth(found, found)


class Hybrid(Strategy):
    name, why = "hybrid", "An image that the model is unsure of and that looks new, with some chance"
    needs = frozenset({"scores", "looks"})

    def worth(self, pool: Pool, rng: np.random.Generator) -> Worth:
        known = np.isfinite(pool.novel)
        most = pool.novel[known].max(initial=0.0)
        score = pool.unsure * (np.where(known, pool.novel, np.nan) / most if most else 1.0)
        return Worth(score, noisy(score, pool.labelled, rng))


class ClassBalanced(Strategy):
    name, why = "class_balanced", "An image that the model is unsure of in a label that few studies have"
    needs = frozenset({"scores"})

    def worth(self, pool: Pool, rng: np.random.Generator) -> Worth:
        labels = sorted(pool.by_label)
        if not labels:
            return Worth(pool.unsure, pool.unsure)
        shares = np.array([1 / (1 + pool.counts.get(label, 0)) for label in labels])
        score = pool.by_label[labels[int(rng.choice(len(labels), p=shares / shares.sum()))]]
        score = score if np.isfinite(score).any() else pool.unsure
        return Worth(score, noisy(score, pool.labelled, rng))


STRATEGIES: dict[str, Strategy] = {
    one.name: one
    for one in (
        Random(), ForegroundRandom(), Uncertainty(), Diversity(), Hybrid(), ClassBalanced(), First(),
    )
}  # fmt: skip
"""By name; clients take the first one unless they are told another."""


def strategy(name: str) -> Strategy:
    """The strategy called `name`; raises `NotFoundError`."""
    if name not in STRATEGIES:
        raise NotFoundError(f"there is no strategy '{name[:64]}'; there are: {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def possible(chooser: Strategy, pool: Pool) -> tuple[Strategy, str]:
    """What can choose from this pool in the place of `chooser`, and what it lacks, "" for nothing.

    Where half of the studies lack what it needs, chance decides; before any label is there to score with,
    looks do.
    """
    known = np.ones(len(pool), bool)
    for what in chooser.needs:
        known &= pool.knows(what)
    if known.all():
        return chooser, ""
    missing = f"{len(pool) - int(known.sum())} of {len(pool)} images are not scored with the served model"
    if known.mean() >= ENOUGH:
        return chooser, f"{missing} and wait"
    if not pool.labelled and pool.knows("looks").mean() >= ENOUGH:
        return STRATEGIES["diversity"], "nothing is labelled yet, so looks alone decide"
    return STRATEGIES["random"], f"{missing}, so chance decides: ask for POST /scoring/uncertainty"


def choose(chooser: Strategy, pool: Pool, count: int, rng: np.random.Generator) -> list[Choice]:
    """Up to `count` studies of the pool, each chosen in the knowledge of those before it."""
    found: list[Choice] = []
    for _ in range(min(count, len(pool))):
        worth = chooser.worth(pool, rng)
        drawn = np.where(np.isfinite(worth.drawn), worth.drawn, UNKNOWN + rng.random(len(pool)))
        drawn[[one.n for one in found]] = -np.inf
        n = int(drawn.argmax())
        rank = 1 + int((worth.score > worth.score[n]).sum())
        found.append(Choice(n, float(worth.score[n]), rank))
        pool = pool.without(n)
    return found


def noisy(score: Floats, labelled: int, rng: np.random.Generator) -> Floats:
    """The logarithm of a score with noise that decays as studies are labelled."""
    sharp = FIRST * (LAST / FIRST) ** min(1.0, labelled / HORIZON)
    return np.log(np.maximum(score, 1e-6)) + rng.gumbel(size=len(score)) / sharp
