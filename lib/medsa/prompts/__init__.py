"""Prompts in voxel coordinates, and (later) the simulated annotator."""

from medsa.prompts.prompt import Prompt

__all__ = ["Prompt"]
