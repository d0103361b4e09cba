"""Prompts in voxel coordinates, and the simulated annotator that gives them."""

from medsa.prompts.prompt import Prompt

__all__ = ["Prompt"]
