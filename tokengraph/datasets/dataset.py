"""``tg.TokenGraphDataset`` reads a data set of token graphs, as PyG's ``OnDiskDataset``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Database, OnDiskDataset

from tokengraph.datasets.manifest import read_manifest
from tokengraph.datasets.recipe import Recipe
from tokengraph.datasets.rows import decode
from tokengraph.datasets.shards import Shards
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.kinds import explain_kinds


@explain_kinds
class TokenGraphDataset(OnDiskDataset):
    """The graphs that ``tokengraph graph DIR --out DATASET`` wrote: one :class:`TokenGraph` an image.

    A graph has the fields of :class:`TokenGraph`, and ``path``, the image's name. With labels it has ``y [1]``, the
    class; with masks ``mask [1, S, S]``, the class of each pixel; coarsened to a hard map ``cluster [1, N]``, the node
    of each input patch (-1: dropped). PyG's ``DataLoader`` with workers, ``Batch``, transforms, slices and
    ``index_select`` work as for its own data sets.

    Args:
        root: The data set.
        transform: Called with each graph.
        dtype: Format of features and edge weights; ``None`` keeps the stored one.

    Raises:
        ValueError: If this is no finished data set, or one of a format that this version cannot read.

    Cost: a graph is one row of a database, read when it is needed; nothing is kept in memory.

    Attributes:
        classes: Names of the classes; ``None`` if unknown.
        recipe: How the graphs were made.
        facts: Model, weights, preprocessing and images.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Callable[[Any], Any] | None = None,
        *,
        dtype: torch.dtype | None = torch.float32,
    ) -> None:
        self.folder, self.dtype = Path(root).expanduser(), dtype
        self.manifest = read_manifest(self.folder)
        if self.manifest.counts is None:
            raise ValueError(
                f"Expected a finished data set (got {str(root)!r}, which a stopped run left). Repeat the command of "
                "that run to finish it."
            )
        self.classes = self.manifest.classes
        super().__init__(
            str(self.folder), transform, backend=self.manifest.backend, schema=self.manifest.schema, log=False
        )

    @property
    def db(self) -> Database:
        """The rows of all shards."""
        if self._db is None:
            self._db = Shards(self.folder, self.manifest)
        return self._db

    @property
    def recipe(self) -> Recipe:
        """How the graphs were made."""
        return self.manifest.recipe

    @property
    def facts(self) -> Mapping[str, str]:
        """Model, weights, preprocessing and images."""
        return self.manifest.facts

    @property
    def labels(self) -> Tensor | None:
        """Class of each graph, ``[n]`` int64, without reading features; ``None`` without labels."""
        if not self.manifest.labels:
            return None
        return torch.tensor(self._rows.column("y"), dtype=torch.int64)[torch.tensor(list(self.indices()))]

    @property
    def paths(self) -> list[str]:
        """Name of each graph's image, without reading features."""
        found = self._rows.column("path")
        return [found[i] for i in self.indices()]

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Name of each image that could not be read, and the reason."""
        shards = range(self.manifest.shards)
        return [pair for n in shards for chunk in self._rows.shard(n).added() for pair in chunk.skipped]

    @property
    def num_classes(self) -> int:
        """Number of classes; 0 without labels."""
        if not self.manifest.labels:
            return 0
        return len(self.classes) if self.classes else int(self._all_labels().max()) + 1

    @property
    def num_node_features(self) -> int:
        """C of the features."""
        return self.manifest.channels

    @property
    def num_features(self) -> int:
        """C of the features."""
        return self.manifest.channels

    def deserialize(self, data: Any) -> TokenGraph:
        """Returns the graph of a row."""
        return decode(data, self.dtype, self.manifest.labels)

    def serialize(self, data: Any) -> Any:
        """Raises: a finished data set is read only."""
        raise TypeError("Expected no new graphs (got one). A data set is read only; tokengraph graph makes another.")

    def multi_get(self, indices: Iterable[int] | Tensor | slice | range, batch_size: int | None = None) -> list[Any]:
        """Returns graphs by their numbers in the whole data set, with one query for each shard."""
        graphs = [self.deserialize(row) for row in self._rows.multi_get(indices, batch_size)]  # type: ignore[arg-type]
        return graphs if self.transform is None else [self.transform(graph) for graph in graphs]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """Returns graphs for a loader. PyG's method ignores that a slice or shuffle renumbers graphs."""
        known = self.indices()
        return self.multi_get([known[int(i)] for i in indices])

    def __repr__(self) -> str:
        model = self.facts.get("model", "")
        recipe = self.recipe
        return f"{type(self).__name__}({len(self)}, {model}, connect={recipe.connect}, coarsen={recipe.coarsen})"

    @property
    def _rows(self) -> Shards:
        rows = self.db
        assert isinstance(rows, Shards)
        return rows

    def _all_labels(self) -> Tensor:
        return torch.tensor(self._rows.column("y"), dtype=torch.int64)
