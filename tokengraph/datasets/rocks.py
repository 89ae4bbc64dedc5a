"""One shard of a data set as a RocksDB folder of PyG; see :class:`tokengraph.datasets.shard.SQLiteShard`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch_geometric.data import RocksDatabase

from tokengraph.datasets.rows import Row
from tokengraph.datasets.shard import Added
from tokengraph.optional import optional


class _Database(RocksDatabase):
    """PyG's, which may be opened for reading by many processes at once."""

    def __init__(self, path: str, schema: Any, write: bool) -> None:
        self.write = write
        super().__init__(path, schema)

    def connect(self) -> None:
        rocksdict = optional("rocksdict")
        access = rocksdict.AccessType.read_write() if self.write else rocksdict.AccessType.read_only()
        self._db = rocksdict.Rdict(self.path, options=rocksdict.Options(raw_mode=True), access_type=access)


class RocksShard:
    """Rows ``0, 1, ...`` of some consecutive images; notes on finished chunks have negative numbers.

    A chunk's rows come before its note, and have the same numbers whenever it is added: after a kill between them the
    next run writes the same rows again.

    Args:
        path: The folder; created if necessary.
        schema: PyG's schema of a row.
        write: False opens it for reading, which many processes may do at once.

    Raises:
        ImportError: If rocksdict is not installed.
        OSError: If another process writes to it, or it is damaged.
    """

    suffix = ".rocks"

    def __init__(self, path: Path, schema: Mapping[str, Any], write: bool = True) -> None:
        optional("rocksdict")
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.db: Any = _Database(str(path), dict(schema), write)
        except Exception as error:  # rocksdict raises Exception itself
            raise OSError(f"Expected a RocksDB folder to open (got {str(path)!r}: {error}).") from error

    def added(self) -> list[Added]:
        """Returns the finished chunks, in order."""
        notes = sorted(
            int.from_bytes(key, "big", signed=True)
            for key in self.db.db.keys()
            if int.from_bytes(key, "big", signed=True) < 0
        )
        found = [self.db.get(number) for number in reversed(notes)]
        return [Added(n["chunk"], n["count"], tuple((p, r) for p, r in n["skipped"])) for n in found]

    def add(self, chunk: int, rows: Sequence[Row], skipped: Sequence[tuple[str, str]] = ()) -> bool:
        """Adds a chunk; False if it is there already."""
        known = self.added()
        if any(one.chunk == chunk for one in known):
            return False
        start = sum(one.count for one in known)
        for index, row in enumerate(rows, start):
            self.db.insert(index, dict(row))
        note = {"chunk": chunk, "count": len(rows), "skipped": [list(pair) for pair in skipped]}
        self.db.insert(-1 - len(known), note)
        self.db.db.flush()
        return True

    def get(self, index: int) -> Row:
        """Returns one row."""
        return self.db.get(index)

    def multi_get(self, indices: Sequence[int]) -> list[Row]:
        """Returns rows in the order given."""
        return self.db.multi_get(list(indices))

    def column(self, name: str) -> list[Any]:
        """Returns one column of all rows, which are read whole."""
        return [self.get(i)[name] for i in range(sum(one.count for one in self.added()))]

    def close(self) -> None:
        """Closes the folder."""
        self.db.close()
