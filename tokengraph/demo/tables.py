"""Prints the demo's tables."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from tokengraph.demo.clusterings import Clustering
from tokengraph.demo.runs import Run
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.optional import optional

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_clusterings(console: Console, clusterings: list[Clustering], graph: TokenGraph) -> None:
    """Prints one line for each strategy, most similar first; then those left out, with the reason."""
    table = _table(f"The graph of {graph.num_nodes} tokens, coarsened to an eighth by every strategy")
    for column in ("strategy", "tokens", "edges", "dropped", "largest", "rounds", "ms", "cosine"):
        table.add_column(column, justify="left" if column == "strategy" else "right")
    for one in sorted(clusterings, key=lambda c: -c.similarity):
        if one.graph is None:
            continue
        lost = max(1 - float(one.graph.size.sum()) / float(graph.size.sum()), 0)
        counts = (one.graph.num_nodes, one.graph.num_edges, f"{lost:.0%}", round(float(one.graph.size.max())))
        table.add_row(one.label, *map(str, counts), str(one.rounds), f"{one.milliseconds:.1f}", f"{one.similarity:.3f}")
    console.print(table)
    for one in clusterings:
        if one.skipped:
            console.print(f"{one.name} left out: {one.skipped}", highlight=False, markup=False)
    _note(console, "largest: patches in a cluster. ms: on one thread. cosine: lifted to original.")


def print_runs(console: Console, runs: list[Run]) -> None:
    """Prints the tokens in each layer, then cost, time and similarity."""
    table = _table("Attached to the model: patch tokens before the first block and after each")
    table.add_column("model", no_wrap=True)
    table.add_column("tokens")
    for run in runs:
        if run.kind != "ideal":
            repeated = ((count, len(list(same))) for count, same in groupby(run.counts))
            table.add_row(
                run.name, "  ".join(f"{count} x{times}" if times > 1 else f"{count}" for count, times in repeated)
            )
    console.print(table)

    table = _table(f"The same models, timed in {len(runs[0].times)} interleaved rounds")
    table.add_column("model", no_wrap=True)
    for column in ("GFLOPs", "ms", "IQR", "/plain", "/ideal", "cosine", "centred"):
        table.add_column(column, justify="right", no_wrap=True)
    ideals = {run.name: run.median for run in runs if run.kind == "ideal"}
    for run in runs:
        cells = [f"{run.gflops:.1f}", f"{run.median:.0f}", f"{run.spread:.0f}", f"{run.median / runs[0].median:.2f}"]
        if run.kind == "attached":
            likeness = run.similarity(runs[0])
            own = ideals.get(run.name)
            cells += [f"{run.median / own:.2f}" if own else "", *(f"{value:.3f}" for value in likeness)]
        name = "  its ideal" if run.kind == "ideal" else run.name
        table.add_row(name, *cells, style="dim" if run.kind == "ideal" else "")
    console.print(table)
    if max(run.spread / run.median for run in runs) > 0.2:
        console.print("Times vary by over a fifth: others use this machine. Try OMP_NUM_THREADS=1.", style="yellow")
    _note(
        console,
        "{l: keep}: share left after block l. r: tokens merged in each block.",
        "ideal: the same counts, nothing chosen or merged. grid-pool, the control, looks",
        "at no feature. GFLOPs: all blocks, choosing and reducing included.",
        "ms: median. IQR: its spread. cosine: final features lifted to every patch, to",
        "the plain ones, mean over patches. centred: without the plain mean token.",
    )


def _table(title: str) -> Table:
    box = optional("rich.box").SIMPLE_HEAD
    return optional("rich.table").Table(
        title=f"\n{title}",
        title_style="bold",
        title_justify="left",
        box=box,
        pad_edge=False,
        collapse_padding=True,
        header_style="dim",
    )


def _note(console: Console, *lines: str) -> None:
    for line in lines:
        console.print(line, style="dim", highlight=False)
    console.print()
