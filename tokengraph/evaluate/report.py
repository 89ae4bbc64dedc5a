"""The report of an evaluation: one row a setting, the dense model first, with figures, intervals, costs and times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from tokengraph.evaluate.row import Row
from tokengraph.evaluate.store import write_text
from tokengraph.evaluate.tables import to_csv, to_json, to_markdown

MAIN = ("top1", "miou", "probe_as_is", "agreement", "class_cosine")  # a plot shows the first of these that exists


@dataclass(frozen=True)
class Report:
    """The results of an evaluation. Printing it gives the Markdown table.

    Args:
        rows: The dense model's row, then settings, then controls.
        skipped: Unreadable images with the reason; no figure counts them.
        facts: Model, images, preprocessing, device, versions, conventions.
    """

    rows: tuple[Row, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def row(self, name: str) -> Row:
        """Returns the row of a setting.

        Raises:
            ValueError: If no row has this name.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise ValueError(f"Expected one of {', '.join(r.name for r in self.rows)} (got {name!r}).")

    @property
    def main(self) -> str | None:
        """The name of the most important figure in the report; ``None`` without figures."""
        there = {name for row in self.rows for name in row.metrics}
        return next((name for name in MAIN if name in there), None)

    def markdown(self) -> str:
        """Returns tables and facts as Markdown."""
        return to_markdown(self.rows, self.skipped, self.facts)

    def json(self) -> str:
        """Returns the whole report as JSON."""
        return to_json(self.rows, self.skipped, self.facts)

    def csv(self) -> str:
        """Returns one line a setting as CSV."""
        return to_csv(self.rows)

    def __str__(self) -> str:
        return self.markdown()

    def save(self, folder: str | PathLike[str], *, plot: bool = True) -> list[Path]:
        """Writes ``report.json``, ``report.csv``, ``report.md`` and, with matplotlib, ``pareto.png``."""
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        texts = {"report.json": self.json(), "report.csv": self.csv(), "report.md": self.markdown()}
        for name, text in texts.items():
            write_text(out / name, text)
        files = [out / name for name in texts]
        if plot and self.main is not None and sum(r.cost is not None and not r.reason for r in self.rows) > 1:
            try:
                from tokengraph.viz.pareto import plot_pareto

                figure = plot_pareto(
                    self.rows, self.main, title=str(self.facts.get("model", "")), subtitle=self._subtitle()
                )
                figure.savefig(out / "pareto.png")
                files.append(out / "pareto.png")
            except ImportError:
                pass  # the other files are complete without it
        return files

    def _subtitle(self) -> str:
        return f"{self.facts.get('images', '?')} images of {self.facts.get('data', '?')}"
