"""Draws the demo's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from tokengraph import viz
from tokengraph.demo.clusterings import Clustering
from tokengraph.demo.runs import Run
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.viz.figure import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(
    out: Path, photo: Tensor, graph: TokenGraph, clusterings: list[Clustering], runs: list[Run], pretrained: bool
) -> list[Path]:
    """Writes the pictures of tokens into a folder and returns their paths."""
    assert graph.grids is not None
    grid, weights = graph.grids[0], "pretrained weights" if pretrained else "random weights"
    there = {one.name: one for one in clusterings if one.graph is not None}
    attached = [run for run in runs if run.kind == "attached"]
    figures = {
        "graph": _graphs(photo, graph, there),
        "clusters": viz.plot_clusters(
            photo,
            {one.label: one.assignment for one in there.values()},
            grid,
            title=f"{graph.num_nodes} tokens coarsened to an eighth",
            subtitle=f"Clusters of a ViT's early features ({weights}) in their mean colour; dropped patches are grey",
        ),
        "features": viz.plot_features(
            photo,
            {_short(runs[0]): runs[0].features, **{_short(run): run.features for run in attached}},
            grid,
            notes={_short(run): f"cosine {run.similarity(runs[0])[0]:.3f}" for run in attached},
            title="Final features at every patch, lifted back from fewer tokens",
            subtitle=f"The three main directions of the plain model's features as red, green and blue ({weights})",
        ),
    }
    return [_save(figure, out / f"{name}.png") for name, figure in figures.items()]


def draw_times(out: Path, runs: list[Run]) -> Path:
    """Writes the picture of the times and returns its path."""
    ideals = any(run.kind == "ideal" for run in runs)
    figure = viz.plot_end_to_end(
        [_row(run, runs[0]) for run in runs],
        title="One image through the model",
        subtitle="ideal: the same token counts, nothing chosen or merged" if ideals else "",
    )
    return _save(figure, out / "times.png")


def _save(figure: Figure, file: Path) -> Path:
    figure.savefig(file)
    return file


def _graphs(photo: Tensor, graph: TokenGraph, clusterings: dict[str, Clustering]) -> Figure:
    """Draws the kNN graph, and beside it the graph coarsened by one strategy."""
    coarse = clusterings.get("ailurus") or next(iter(clusterings.values()), None)
    figure = new_figure(
        12.2,
        6.8,
        "A photograph as a graph of tokens",
        "Each token with edges from its nearest in feature space; then the coarse graph, areas by patches",
    )
    axes = figure.subplots(1, 2)
    viz.plot_graph(photo, graph, ax=axes[0], distance=False, title="tokens")
    if coarse is not None and coarse.graph is not None:
        viz.plot_graph(photo, coarse.graph, ax=axes[1], distance=False, title=f"coarsened by {coarse.label}")
    else:
        axes[1].set_axis_off()
    return figure


def _short(run: Run) -> str:
    return run.name.split(" {")[0].split(" r=")[0]


def _row(run: Run, plain: Run) -> dict[str, object]:
    return {
        "name": run.name.replace(" {", "\n{"),
        "kind": run.kind,
        "median_ms": run.median,
        "iqr_ms": run.spread,
        "ratio_to_plain": run.median / plain.median,
    }
