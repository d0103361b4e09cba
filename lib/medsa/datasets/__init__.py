"""Public data sets in the layout in which they are downloaded, as cases (configs/datasets)."""

from medsa.datasets.layout import find_cases
from medsa.datasets.spec import Dataset, dataset_names, read_dataset

__all__ = ["Dataset", "dataset_names", "find_cases", "read_dataset"]
