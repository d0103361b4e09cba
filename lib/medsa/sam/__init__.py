"""The frozen foundation models: Segment Anything and its relatives, tensors in, tensors out."""

from medsa.sam.backbone import Backbone, read_backbone, read_backbones
from medsa.sam.build import Sam, build_sam, load_sam
from medsa.sam.promptable import Promptable
from medsa.sam.weights import backbone_table, locate

__all__ = [
    "Backbone",
    "Promptable",
    "Sam",
    "backbone_table",
    "build_sam",
    "load_sam",
    "locate",
    "read_backbone",
    "read_backbones",
]
