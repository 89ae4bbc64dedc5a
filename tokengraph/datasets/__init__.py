"""Token graphs of many images on disk, as a data set of PyG."""

from tokengraph.datasets.dataset import TokenGraphDataset
from tokengraph.datasets.recipe import Recipe
from tokengraph.datasets.write import Written, write_dataset

__all__ = ["Recipe", "TokenGraphDataset", "Written", "write_dataset"]
