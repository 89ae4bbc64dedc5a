"""Writes the results of a benchmark as JSON, tables and plots, and shows a progress bar while it runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from harness import Summary, Timing, label

RESULTS = Path(__file__).resolve().parent / "results"
Row = Mapping[str, Any]


def add_out(parser: argparse.ArgumentParser, name: str) -> None:
    """The option ``--out``, looked at before anything is measured."""
    parser.add_argument(
        "--out", type=_json_file, help=f"JSON file, others beside it; default: benchmarks/results/<device>/{name}.json"
    )


def out_file(out: Path | None, name: str, device: torch.device | str) -> Path:
    """Where results go."""
    return out or RESULTS / label(device) / f"{name}.json"


def _json_file(text: str) -> Path:
    path = Path(text)
    if path.suffix != ".json" or path.is_dir():
        raise argparse.ArgumentTypeError(f"Expected a file that ends in .json (got {text!r}).")
    return path


def timing_fields(timing: Timing) -> dict[str, float]:
    """``median_ms`` and ``iqr_ms`` for a row."""
    return {"median_ms": round(timing.ms.median, 4), "iqr_ms": round(timing.ms.iqr, 4)}


def ratio_fields(name: str, ratio: Summary) -> dict[str, Any]:
    """A ratio with its quartiles for a row: ``{name: median, name_quartiles: [low, high]}``."""
    return {name: round(ratio.median, 4), f"{name}_quartiles": [round(ratio.low, 4), round(ratio.high, 4)]}


def with_quartiles(row: Row, name: str, digits: int = 2) -> str:
    """``2.31 [2.25, 2.40]``, or nothing where the row has no such ratio."""
    if row.get(name) is None:
        return ""
    low, high = row[f"{name}_quartiles"]
    return f"{row[name]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes ``content`` with one row a line, so that a change of one number is a change of one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = []
    for key, value in content.items():
        if isinstance(value, list) and value:
            lines = ",\n".join(f"    {json.dumps(row)}" for row in value)
            parts.append(f"  {json.dumps(key)}: [\n{lines}\n  ]")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")


def markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = "|" + "|".join(" --- " for _ in columns) + "|"
    rows = ["| " + " | ".join(row) + " |" for row in [columns, *cells]]
    return "\n".join([rows[0], rule, *rows[1:]]) + "\n"


def show(title: str, columns: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    """Prints a table: by rich where the extra ``cli`` is installed, else as Markdown."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(f"\n{title}\n\n{markdown(columns, cells)}")
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in cells:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=240)
    console.print(table)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A progress bar of ``total`` steps. Yields a function to call at the start of each, with what it is."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        done = iter(range(1, total + 1))
        yield lambda text: print(f"[{next(done, total)}/{total}] {text}", flush=True)
        return
    columns = (TextColumn("{task.description:<48}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # The bar draws only between measurements, because a drawing thread would affect them.
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
        task = bar.add_task("", total=total)
        started = False

        def step(text: str) -> None:
            nonlocal started
            bar.update(task, advance=int(started), description=text, refresh=True)
            started = True

        yield step
        bar.update(task, advance=1, description="done", refresh=True)


def save_plot(path: Path, plot: str, rows: Sequence[Row]) -> bool:
    """Draws ``rows`` with a function of :mod:`tokengraph.viz`; without matplotlib it prints that and returns False."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from tokengraph import viz
    except ImportError as error:
        print(f"No plot {path.name}: {error}. Install the extra: pip install 'tokengraph[viz]'")
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = getattr(viz, plot)(rows)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    return True
