"""Reads tables of where a strategy saves time: the smallest sequence by model, batch and threads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tokengraph.planning.family import Family

PAYS = 1.03  # a smaller speed-up is none


@dataclass(frozen=True)
class PayRow:
    """One measurement.

    Args:
        strategy: Its registered name.
        channels: C of the model.
        batch: Images of a run.
        threads: Threads of the CPU.
        tokens: Patch tokens of an image.
        ratio: Time of the attached model over that of the plain one.
    """

    strategy: str
    channels: int
    batch: int
    threads: int
    tokens: int
    ratio: float


def read_pays(path: str | Path) -> list[PayRow]:
    """Reads a table as ``benchmarks/pays.py`` writes it: JSON with ``rows``, whose other fields are ignored.

    Raises:
        ValueError: If the file is no such table.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))["rows"]
        return table_of(rows)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected a table of where strategies pay, as benchmarks/pays.py writes it (got {str(path)!r}: {error!r})."
        ) from error


def smallest_paying(rows: Iterable[PayRow]) -> int | None:
    """Returns the fewest tokens from which on every measurement saves at least 3 % of the time; ``None``: none does.

    Args:
        rows: Measurements of one strategy at several numbers of tokens.

    Example:
        >>> smallest_paying([PayRow("tome", 192, 1, 1, n, t) for n, t in ((36, 1.2), (100, 0.96), (196, 0.8))])
        100
    """
    found = None
    for row in sorted(rows, key=lambda row: -row.tokens):
        if row.ratio * PAYS > 1:
            break
        found = row.tokens
    return found


def nearest_rows(rows: Sequence[PayRow], strategy: str, channels: int, batch: int, threads: int) -> list[PayRow]:
    """Returns a strategy's rows for the threads, model width and batch that are nearest, each by its ratio."""
    left = [row for row in rows if row.strategy == strategy]
    for name, wanted in (("threads", threads), ("channels", channels), ("batch", batch)):
        if left:
            near = min((getattr(row, name) for row in left), key=lambda n: (abs(math.log(n / wanted)), n))
            left = [row for row in left if getattr(row, name) == near]
    return left


def that_pay(
    tried: Sequence[Family], rows: Sequence[PayRow], *, tokens: int, channels: int, batch: int, threads: int
) -> tuple[list[Family], list[str]]:
    """Leaves out strategies that save no time on so few tokens by a table.

    A strategy that the table does not have stays. One that never pays in the table is left out up to the most tokens
    that were measured.

    Args:
        tried: The strategies.
        rows: The table.
        tokens: Patch tokens of the model's own input.
        channels: C of the model.
        batch: Images of a run.
        threads: Threads of the CPU.

    Returns:
        The others, and a note for each that was left out.
    """
    kept, notes = [], []
    for family in tried:
        near = nearest_rows(rows, family.select.name, channels, batch, threads)
        if not near:
            kept.append(family)
            continue
        first = smallest_paying(near)
        if tokens >= first if first is not None else tokens > max(row.tokens for row in near):
            kept.append(family)
            continue
        pays = "at no measured number of tokens" if first is None else f"from {first} tokens on"
        like = f"C={near[0].channels}, batches of {near[0].batch}, threads: {near[0].threads}"
        notes.append(f"{family.name} was left out: by the table it pays {pays} ({like}); here are {tokens}.")
    return kept, notes


def table_of(rows: Sequence[Mapping[str, Any]]) -> list[PayRow]:
    """Returns rows of a benchmark without their other fields."""
    return [PayRow(**{field.name: row[field.name] for field in fields(PayRow)}) for row in rows]
