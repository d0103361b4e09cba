"""How good a mask is."""

from medsa.evaluation.overlap import dice

__all__ = ["dice"]
