"""What the demo found, as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokengraph.demo.clusterings import Clustering
from tokengraph.demo.runs import Run
from tokengraph.graph.token_graph import TokenGraph


@dataclass(frozen=True)
class Found:
    """The outcome of the demo.

    Args:
        facts: Photograph, size, model and weights.
        graph: The graph of the photograph's tokens.
        clusterings: The outcome of every strategy on it.
        runs: The model, plain and with strategies attached.
        timed: Whether the runs were timed.
        left_out: A line about each form that was left out.
        files: The pictures.
    """

    facts: dict[str, Any]
    graph: TokenGraph
    clusterings: list[Clustering]
    runs: list[Run]
    timed: bool
    left_out: list[str]
    files: list[Path]

    def json(self) -> dict[str, Any]:
        """Returns the outcome as JSON; figures that are not known are ``null``."""
        return {
            **self.facts,
            "graph": {"nodes": self.graph.num_nodes, "edges": self.graph.num_edges},
            "clusterings": [_clustering(one) for one in self.clusterings],
            "runs": [self._run(run) for run in self.runs],
            "left_out": list(self.left_out),
            "pictures": [str(file) for file in self.files],
        }

    def _run(self, run: Run) -> dict[str, Any]:
        made: dict[str, Any] = {"name": run.name, "kind": run.kind, "tokens": list(run.counts), "gflops": run.gflops}
        made["milliseconds"] = _number(run.median) if self.timed and run.times else None
        first = self.runs[0]
        plain, centred = (None, None) if run.features is None or run is first else run.similarity(first)
        return {**made, "cosine": _number(plain), "cosine_without_mean": _number(centred)}


def _clustering(one: Clustering) -> dict[str, Any]:
    if one.graph is None:
        return {"strategy": one.name, "skipped": one.skipped}
    return {
        "strategy": one.label,
        "tokens": one.graph.num_nodes,
        "edges": one.graph.num_edges,
        "patches": float(one.graph.size.sum()),
        "largest": float(one.graph.size.max()),
        "rounds": one.rounds,
        "milliseconds": _number(one.milliseconds),
        "cosine": _number(one.similarity),
    }


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
