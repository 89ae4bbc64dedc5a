"""All shards of a data set as one database of PyG, for reading."""

from __future__ import annotations

import bisect
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch_geometric.data import Database

from tokengraph.datasets.manifest import Manifest
from tokengraph.datasets.rocks import RocksShard
from tokengraph.datasets.rows import Row
from tokengraph.datasets.shard import SQLiteShard

OPEN = 64  # shards that one thread keeps open
Shard = SQLiteShard | RocksShard


def open_shard(manifest: Manifest, root: Path, number: int, *, write: bool = False) -> Shard:
    """Opens a shard.

    Raises:
        ValueError: If a shard to read is not there, or the file is no shard.
    """
    file = manifest.file(root, number)
    if not write and not file.exists():
        raise ValueError(f"Expected shard {str(file)!r} of the data set (got none). Copy it with all of its shards.")
    if manifest.backend == "rocksdb":
        return RocksShard(file, manifest.schema, write)
    return SQLiteShard(file, manifest.schema)


class Shards(Database):
    """Rows of all shards, numbered through.

    Files are opened when they are needed, in each process and thread anew: a connection of SQLite must not cross a
    fork.

    Args:
        root: Folder of the data set.
        manifest: Of the finished data set.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        super().__init__(manifest.schema)
        self.root, self.manifest = root, manifest
        self._ends = list(itertools.accumulate(manifest.counts or ()))
        self._open: OrderedDict[tuple[int, int, int], Shard] = OrderedDict()

    def connect(self) -> None:
        """Does nothing: shards are opened when a row is read."""

    def close(self) -> None:
        """Closes the shards of this process."""
        for (pid, thread, _), shard in self._open.items():
            if (pid, thread) == (os.getpid(), threading.get_ident()):
                shard.close()
        self._open.clear()

    def insert(self, index: int, data: Any) -> None:
        """Raises: a finished data set is read only."""
        raise TypeError("Expected no new rows (got one). A data set is read only; tokengraph graph makes another.")

    def get(self, index: int) -> Row:
        """Returns one row; raises IndexError outside the data set."""
        number, local = self._place(index)
        return self.shard(number).get(local)

    def multi_get(self, indices: Sequence[int] | Tensor | slice | range, batch_size: int | None = None) -> list[Row]:
        """Returns rows in the order given; one query for each shard."""
        if isinstance(indices, slice):
            indices = range(*indices.indices(len(self)))
        wanted = [int(i) for i in indices]
        by_shard: dict[int, list[tuple[int, int]]] = {}
        for place, index in enumerate(wanted):
            number, local = self._place(index)
            by_shard.setdefault(number, []).append((place, local))
        found: list[Any] = [None] * len(wanted)
        for number, pairs in by_shard.items():
            for (place, _), row in zip(pairs, self.shard(number).multi_get([i for _, i in pairs]), strict=True):
                found[place] = row
        return found

    def shard(self, number: int) -> Shard:
        """Returns an open shard of this process and thread."""
        key = os.getpid(), threading.get_ident(), number
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        self._open[key] = open_shard(self.manifest, self.root, number)
        while len(self._open) > OPEN:
            oldest, shard = self._open.popitem(last=False)
            if oldest[:2] == key[:2]:
                shard.close()
        return self._open[key]

    def column(self, name: str) -> list[Any]:
        """Returns one column of all rows, for texts and numbers."""
        return [v for n, count in enumerate(self.manifest.counts or ()) if count for v in self.shard(n).column(name)]

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"Expected an index below {len(self)} (got {index}).")
        number = bisect.bisect_right(self._ends, index)
        return number, index - (self._ends[number - 1] if number else 0)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": OrderedDict()}
