"""The commands of :mod:`truth`; a task that cannot run prints its reason, and the other tasks run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokengraph.evaluate.options import Options
from truth.agree import differences
from truth.chosen import best, frontier, headline, moved, settled
from truth.curves import curves
from truth.fetch import fetch
from truth.floors import write_floors
from truth.planned import HELD, ORIGINS, SETS, compare, make_plans, write_planned
from truth.readme import write_readme
from truth.realigned import realigned
from truth.report import scores, write_report
from truth.results import read
from truth.run import RESULTS, Place, run
from truth.tables import COSTS, Candidate, search
from truth.tasks import TASKS, Task

CURVES = {
    "photographs": None,
    "elpv-224-defect": 48,
    "fashion-train": 500,
}  # tasks of the curves, with the number of images
LIMITS = {"tokens": 1e-4, "saliency": 2e-5}  # largest allowed differences from onnxruntime


@dataclass(frozen=True)
class Choice:
    """The choices of the command line.

    Args:
        data: Folder of packages.
        results: Folder of results.
        tasks: Names.
        costs: Shares of the dense cost; ``None``: all four.
        limit: Largest number of images a task.
        time: Measures time too, in ``headline``; only meaningful on an idle machine.
        fresh: Measures rows again that come from other code of the library.
        only: A regular expression: only settings in which it is found.
    """

    data: Path
    results: Path
    tasks: Sequence[str]
    costs: Sequence[float] | None = None
    limit: int | None = None
    time: bool = False
    fresh: bool = False
    only: str = ""

    def wanted(self, candidates: Iterable[Candidate]) -> list[Candidate]:
        """The candidates whose setting matches ``only``."""
        return [c for c in candidates if re.search(self.only, c.setting)]

    @property
    def place(self) -> Place:
        """Folders of a run."""
        return Place(self.data, self.results, self.fresh)


def _fetch(choice: Choice) -> int:
    reasons = fetch(choice.data)
    for name, reason in reasons.items():
        print(f"{name}: {'missing: ' + reason if reason else 'there'}")
    return 0 if not all(reasons.values()) else 1


def _check(choice: Choice) -> int:
    try:
        found = differences(choice.data)
    except (OSError, ImportError) as error:
        print(f"not checked: {error}", file=sys.stderr)
        return 1
    for name, value in found.items():
        print(f"{name}: largest difference to onnxruntime {value:.2g} (at most {LIMITS[name]:g})")
    return int(any(value > LIMITS[name] for name, value in found.items()))


def _each(choice: Choice, work: Callable[[Task], object]) -> int:
    """Does the work for each chosen task; returns 1 if none could run."""
    failed = 0
    for name in choice.tasks:
        try:
            work(TASKS[name])
        except (OSError, ImportError, ValueError, RuntimeError) as error:  # packages, extras or weights are missing
            failed += 1
            print(f"{name}: not run: {type(error).__name__}: {error}", file=sys.stderr)
    write_report(choice.results)
    return int(failed == len(choice.tasks))


def _measure(
    choice: Choice,
    kind: str,
    settings: Callable[[Task], Sequence[Candidate]],
    *,
    whole: bool = False,
    time: bool = False,
) -> int:
    """Measures the settings of each chosen task that takes this kind of table; ``whole`` uses all of its images."""
    options = Options(time=True, memory=True) if time else None

    def work(task: Task) -> None:
        """Runs one task."""
        if kind in task.takes:
            limit = choice.limit if whole else choice.limit or task.limit
            run(task, kind, choice.wanted(settings(task)), choice.place, limit=limit, options=options)

    return _each(choice, work)


def _search(choice: Choice) -> int:
    return _measure(choice, "search", lambda task: _searched(task, choice))


def _headline(choice: Choice) -> int:
    def settings(task: Task) -> Sequence[Candidate]:
        """Chooses from what the search found."""
        return _at(headline(task.body(choice.data), *_picked(task, choice)), choice)

    return _measure(choice, "headline", settings, whole=True, time=choice.time)


def _frontier(choice: Choice) -> int:
    def settings(task: Task) -> Sequence[Candidate]:
        """Chooses from what the search found."""
        return _at(frontier(task.body(choice.data), _picked(task, choice)[0]), choice)

    return _measure(choice, "frontier", settings)


def _curves(choice: Choice) -> int:
    def work(task: Task) -> None:
        """Runs one task."""
        if task.name in CURVES:
            limit = choice.limit or CURVES[task.name]
            run(task, "curves", choice.wanted(curves(task.body(choice.data))), choice.place, limit=limit, probe=False)

    return _each(choice, work)


def _searched(task: Task, choice: Choice) -> list[Candidate]:
    return list(search(task.body(choice.data), choice.costs or COSTS))


def _at(candidates: Sequence[Candidate], choice: Choice) -> list[Candidate]:
    return [c for c in candidates if choice.costs is None or c.cost in choice.costs]


def _picked(task: Task, choice: Choice) -> tuple[list[Candidate], dict[str, float]]:
    """Returns the best settings of the search for a task's model, and their scores."""
    origin = TASKS[task.searched]
    same = {"model": task.source(choice.data).name, "group": "search"}
    lines = [line for line in read(choice.results / f"{origin.name}.jsonl") if same.items() <= line.items()]
    score = scores(lines)
    if not score:
        raise ValueError(
            f"Expected results of the search on {origin.name} with this model (got none). Run search first."
        )
    picked = best(settled(_searched(origin, choice), lines), score)
    old, new = origin.body(choice.data), task.body(choice.data)
    return (picked, score) if old.side == new.side else moved(picked, score, old, new)


def _plan(choice: Choice) -> int:
    costs, failed = choice.costs or COSTS, 0
    for name in ORIGINS:
        try:
            make_plans(name, choice.data, choice.results, costs)
        except (OSError, ImportError, ValueError, RuntimeError) as error:
            print(f"{name}: no plans: {type(error).__name__}: {error}", file=sys.stderr)
    for name in SETS:
        try:
            compare(name, choice.data, choice.results, costs, choice.limit or HELD)
        except (OSError, ImportError, ValueError, RuntimeError) as error:
            failed += 1
            print(f"{name}: not run: {type(error).__name__}: {error}", file=sys.stderr)
    write_planned(choice.results)
    return int(failed == len(SETS))


def _report(choice: Choice) -> int:
    print(write_report(choice.results))
    if choice.results.resolve() == RESULTS.resolve() and write_readme(choice.results):
        print("README.md: the table of results")
    return 0


def _realign(choice: Choice) -> int:
    try:
        print(realigned(choice.data, choice.results, choice.limit))
    except (OSError, ImportError, ValueError, RuntimeError) as error:
        print(f"not run: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _floors(choice: Choice) -> int:
    for setting, kept in write_floors(choice.data, TASKS["fashion"].body(choice.data)).items():
        print(setting, kept)
    return 0


def _all(choice: Choice) -> int:
    steps = (_fetch, _check, _search, _headline, _frontier, _report)
    return max(step(choice) for step in steps)


COMMANDS: dict[str, Callable[[Choice], int]] = {
    "fetch": _fetch,
    "check": _check,
    "search": _search,
    "curves": _curves,
    "plan": _plan,
    "headline": _headline,
    "frontier": _frontier,
    "report": _report,
    "realign": _realign,
    "floors": _floors,
    "all": _all,
}
