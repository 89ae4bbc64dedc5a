"""The demo from the photograph to the pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from tokengraph.adapters import find_adapter
from tokengraph.demo.clusterings import cluster, share
from tokengraph.demo.pictures import draw
from tokengraph.demo.runs import make_runs, measure
from tokengraph.demo.tables import print_clusterings, print_runs
from tokengraph.demo.weights import load_model
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.io.photo import find_photo, load_photo, normalize
from tokengraph.optional import optional
from tokengraph.select import registry

if TYPE_CHECKING:
    from rich.console import Console

LAYER = 2  # blocks that have run when the graph is built, and when AiluRus acts
NEIGHBORS = 4


@torch.no_grad()
def demo(
    image: str | Path | None = None,
    *,
    model: str = "vit_small_patch16_224.dino",
    size: int = 448,
    out: str | Path = "outputs/demo",
    pretrained: bool = True,
    console: Console | None = None,
) -> list[Path]:
    """Runs the demo and writes its pictures.

    Args:
        image: A photograph; by default one that scikit-image ships.
        model: A vision transformer of timm, by name.
        size: Side of the image in pixels, a multiple of the patch size.
        out: Folder of the pictures; made if need be.
        pretrained: Whether to look for pretrained weights.
        console: Where to print.

    Returns:
        The pictures' paths.

    Raises:
        ValueError: If image, model or size will not do.
        ImportError: If rich, timm, matplotlib or Pillow is not installed; names the extra to install.
    """
    if console is None:
        console = cast("Console", optional("rich.console").Console())
    for module in ("matplotlib", "PIL"):  # now rather than after the work
        optional(module)
    photo = load_photo(image, size)
    loaded = load_model(model, img_size=size, pretrained=pretrained)
    core, adapter = find_adapter(loaded.model)
    depth = len(adapter.blocks(core))
    _check_size(core, size)

    console.rule("[bold]tokengraph")
    rows = [("photograph", f"{find_photo(image).name}, {size} x {size} pixels")]
    rows += [("model", f"{model}, {depth} blocks"), ("weights", loaded.source)]
    if not loaded.pretrained:
        rows.append(("", "[yellow]Untrained: clusters follow colour and texture, not meaning.[/]"))
    images = normalize(photo, core)
    layer = min(LAYER, depth)
    graph = TokenGraph.from_model(core, images, layer=layer)
    graph = graph.connect_knn(min(NEIGHBORS, sum(graph.counts) - 1), cosine=True)
    rows += [("graph", f"{graph}"), ("", f"tokens after block {layer}, edges from the {NEIGHBORS} nearest by cosine")]
    _print_facts(console, rows)

    clusterings = [cluster(graph, name, share(graph, 8)) for name in registry()]
    print_clusterings(console, clusterings, graph)
    runs = make_runs(core, images, layer)
    measure(runs, core, images, console)
    print_runs(console, runs)
    files = draw(Path(out), photo, graph, clusterings, runs, loaded.pretrained)
    _print_facts(console, [("pictures" if i == 0 else "", str(file)) for i, file in enumerate(files)])
    return files


def _check_size(model: nn.Module, size: int) -> None:
    patch: Any = model.patch_embed.patch_size  # type: ignore[union-attr]
    if size % patch[0] or size < 3 * patch[0]:
        near = max(3, round(size / patch[0])) * patch[0]
        raise ValueError(f"Expected a size that is a multiple of the patch size {patch[0]} (got {size}). Try {near}.")


def _print_facts(console: Console, rows: list[tuple[str, str]]) -> None:
    table = optional("rich.table").Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, fact in rows:
        table.add_row(name, fact)
    console.print(table)
