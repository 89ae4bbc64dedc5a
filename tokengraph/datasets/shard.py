"""One shard of a data set: an SQLite file of PyG, to which whole chunks of images are added, each once."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch_geometric.data import SQLiteDatabase

from tokengraph.datasets.rows import Row

TABLE = "graphs"
PATIENCE = 60_000  # milliseconds to wait for another process that writes to the same file


@dataclass(frozen=True)
class Added:
    """What a shard knows of one finished chunk.

    Args:
        chunk: Number of the chunk in the data set.
        count: Graphs.
        skipped: Path and reason of each image that could not be read.
    """

    chunk: int
    count: int
    skipped: tuple[tuple[str, str], ...] = ()


class SQLiteShard:
    """Rows ``0, 1, ...`` of some consecutive images, in the images' order.

    A chunk's rows and the note that the chunk is finished are one transaction: after a kill at any moment the file has
    all rows of a chunk or none.

    Args:
        path: The file; created with its folder if necessary.
        schema: PyG's schema of a row.

    Raises:
        ValueError: If the file is no shard.
    """

    suffix = ".db"

    def __init__(self, path: Path, schema: Mapping[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _told(path):
            self.db: Any = SQLiteDatabase(str(path), TABLE, dict(schema))
            self.db.cursor.execute(f"PRAGMA busy_timeout = {PATIENCE}")

    def added(self) -> list[Added]:
        """Returns the finished chunks, in order."""
        with _told(self.path):
            self._make()
            found = self.db.cursor.execute("SELECT chunk, count, skipped FROM chunks ORDER BY chunk").fetchall()
        return [Added(chunk, count, tuple((p, r) for p, r in json.loads(skipped))) for chunk, count, skipped in found]

    def add(self, chunk: int, rows: Sequence[Row], skipped: Sequence[tuple[str, str]] = ()) -> bool:
        """Adds a chunk in one transaction.

        Returns:
            False if another process added it before; the file is then unchanged.
        """
        with _told(self.path):
            self._make()
            cursor = self.db.cursor
            cursor.execute("BEGIN IMMEDIATE")
            try:
                if cursor.execute("SELECT 1 FROM chunks WHERE chunk = ?", (chunk,)).fetchone():
                    self.db.connection.rollback()
                    return False
                start = cursor.execute("SELECT COALESCE(SUM(count), 0) FROM chunks").fetchone()[0]
                values = (chunk, len(rows), json.dumps(list(skipped)))
                cursor.execute("INSERT INTO chunks (chunk, count, skipped) VALUES (?, ?, ?)", values)
                if rows:
                    self.db.multi_insert(range(start, start + len(rows)), list(rows))  # PyG commits
                self.db.connection.commit()
            except BaseException:
                self.db.connection.rollback()
                raise
        return True

    def get(self, index: int) -> Row:
        """Returns one row."""
        with _told(self.path):
            return self.db.get(index)

    def multi_get(self, indices: Sequence[int]) -> list[Row]:
        """Returns rows in the order given."""
        with _told(self.path):
            return self.db.multi_get(list(indices)) if len(indices) > 1 else [self.db.get(i) for i in indices]

    def column(self, name: str) -> list[Any]:
        """Returns one column of all rows, for texts and numbers."""
        with _told(self.path):
            found = self.db.cursor.execute(f"SELECT COL_{name} FROM {TABLE} ORDER BY id").fetchall()
        return [value for (value,) in found]

    def close(self) -> None:
        """Closes the file."""
        self.db.close()

    def _make(self) -> None:
        self.db.cursor.execute(
            "CREATE TABLE IF NOT EXISTS chunks (chunk INTEGER PRIMARY KEY, count INTEGER NOT NULL, skipped TEXT)"
        )


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turns errors of SQLite into one line that names the file."""
    try:
        yield
    except sqlite3.OperationalError as error:  # a full disk, no rights, a lock
        raise OSError(f"Expected to read and write {str(path)!r} (got {error}).") from error
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"Expected a shard of token graphs (got {str(path)!r}: {error}). Delete this file and repeat the command."
        ) from error
