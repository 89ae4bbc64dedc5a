"""Token graphs of many images on disk, as a data set of PyG.

``write`` makes a data set with a ``maker`` (the model) by a ``recipe`` (layer, edges, coarsening), and ``dataset``
reads it. The images come through ``read``, the graphs become ``rows`` of a ``shard`` (SQLite) or of ``rocks``
(RocksDB). ``manifest`` is the file that describes all ``shards``.
"""

from tokengraph.datasets.dataset import TokenGraphDataset
from tokengraph.datasets.recipe import Recipe
from tokengraph.datasets.write import Written, write_dataset

__all__ = ["Recipe", "TokenGraphDataset", "Written", "write_dataset"]
