"""Runs tables of settings on tasks; repeat the command to resume a stopped run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokengraph as tg
from tokengraph.evaluate.options import Options
from tokengraph.evaluate.store import slug
from truth.library_code import digest
from truth.results import commit, line_of, merged, read, write
from truth.tables import Candidate, nearest_share
from truth.tasks import Task
from truth.thresholds import SHAPE

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "truth"
AT_ONCE = 16  # settings between two saves of rows; each lot runs the dense model once more


@dataclass(frozen=True)
class Place:
    """The folders of packages, predictions and results.

    Args:
        packages: Folder of the fetched packages; predictions go to its ``runs``.
        results: Folder of the result files.
        fresh: Measures rows again that come from other code of the library. Predictions of other code are never used.
    """

    packages: Path
    results: Path = RESULTS
    fresh: bool = False


def run(
    task: Task,
    group: str,
    candidates: Sequence[Candidate],
    place: Place,
    *,
    limit: int | None = None,
    options: Options | None = None,
    probe: bool = True,
) -> Path:
    """Measures settings on a task and writes their rows to ``results/TASK.jsonl``, sixteen at a time.

    Rows that are there, of the same group, images and settings, are not measured again, unless they failed.

    Args:
        task: Model, images, measures.
        group: Name of this part of the table.
        candidates: Settings.
        place: Folders.
        limit: Images of each part; ``None``: all.
        options: How to run.
        probe: Fits the probe of a task that has one; else the figures are fidelity alone.

    Returns:
        The file of results.

    Raises:
        OSError: If a package of the task is not there.
    """
    file = place.results / f"{task.name}.jsonl"
    source, (data, train) = task.source(place.packages), task.images(place.packages, limit)
    decode = None if task.decode is None else task.decode(place.packages)
    same = {"model": source.name, "group": group, "images": len(data)}
    wanted = same | ({"code": digest()} if place.fresh else {})
    here = {line["setting"] for line in read(file) if wanted.items() <= line.items() and not line.get("reason")}
    kept = (task.folder or task.name) + ("" if probe else " fidelity")  # a probe needs features, fidelity does not
    todo = [c for c in candidates if c.setting not in here]
    for start in range(0, len(todo), AT_ONCE):
        lot = todo[start : start + AT_ONCE]
        report = tg.evaluate(
            source,
            [c.setting for c in lot],
            data,
            out=place.packages / "runs" / slug(f"{kept} {len(data)} {digest()} {source.name}"),
            controls=False,  # they are settings of the table
            probe=task.probe if probe else None,
            train=train if probe else None,
            decode=decode,
            options=options or Options(time=False, memory=False),
        )
        made = {c.setting: c for c in lot}
        about = {**same, "commit": commit(ROOT), "code": digest()}
        lines = [line_of(row, about | _origin(made.get(row.name), row.cost)) for row in report.rows]
        write(file, merged(read(file), lines))
    return file


def _origin(candidate: Candidate | None, cost: float | None) -> dict[str, Any]:
    """What a setting was made from; nothing for the dense model."""
    if candidate is None:
        return {}
    wanted = nearest_share(cost) if candidate.shape == SHAPE else candidate.cost
    return {"strategy": candidate.strategy, "shape": candidate.shape, "wanted": wanted}
