"""medsa: interactive medical segmentation with adapters on a frozen Segment Anything Model."""

__version__ = "0.1.0"
