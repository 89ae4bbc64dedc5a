"""The demo from the photograph to the pictures."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from tokengraph.adapters import find_adapter
from tokengraph.demo.clusterings import cluster, share
from tokengraph.demo.found import Found
from tokengraph.demo.pictures import draw, draw_times
from tokengraph.demo.runs import Run, check_attaches, make_runs, measure
from tokengraph.demo.tables import print_clusterings, print_runs
from tokengraph.demo.weights import load_model
from tokengraph.graph.token_graph import TokenGraph
from tokengraph.io.photo import find_photo, load_photo, normalize
from tokengraph.optional import optional
from tokengraph.select import registry

if TYPE_CHECKING:
    from rich.console import Console

LAYER = 2  # number of finished blocks when the graph is built, and when AiluRus acts
NEIGHBORS = 4


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
        out: Folder of the pictures; created if missing.
        pretrained: Whether to look for pretrained weights.
        console: Console to print to; ``None``: the standard output.

    Returns:
        The pictures' paths.

    Raises:
        ValueError: If image, model, size or folder are not usable; raised before any work or output.
        ImportError: If rich, timm, matplotlib or Pillow is not installed; names the extra to install.
    """
    if console is None:
        console = cast("Console", optional("rich.console").Console())
    return run_demo(image, model=model, size=size, out=out, pretrained=pretrained, console=console).files


@torch.no_grad()
def run_demo(
    image: str | Path | None, *, model: str, size: int, out: str | Path, pretrained: bool, console: Console
) -> Found:
    """Runs the demo as :func:`demo` does, and returns what it found."""
    for module in ("matplotlib", "PIL"):  # fails before the work, not after it
        optional(module)
    photo = load_photo(image, size)
    loaded = load_model(model, img_size=size, pretrained=pretrained)
    core, adapter = find_adapter(loaded.model)
    depth = len(adapter.blocks(core))
    _check_size(adapter.embedding(core), size)
    layer = min(LAYER, depth)
    check_attaches(core, layer)
    folder = _writable(Path(out))

    console.rule("[bold]tokengraph")
    rows = [("photograph", f"{find_photo(image).name}, {size} x {size} pixels")]
    rows += [("model", f"{model}, {depth} blocks"), ("weights", loaded.source)]
    if not loaded.pretrained:
        rows.append(("", "[yellow]Untrained: clusters follow colour and texture, not meaning.[/]"))
    images = normalize(photo, core)
    graph = TokenGraph.from_model(core, images, layer=layer)
    graph = graph.connect_knn(min(NEIGHBORS, sum(graph.counts) - 1), cosine=True)
    rows += [("graph", f"{graph}"), ("", f"tokens after block {layer}, edges from the {NEIGHBORS} nearest by cosine")]
    _print_facts(console, rows)

    clusterings = [cluster(graph, name, share(graph, 8)) for name in registry()]
    print_clusterings(console, clusterings, graph)
    runs, left_out = make_runs(core, images, layer)
    files = draw(folder, photo, graph, clusterings, runs, loaded.pretrained)  # before the timing, which can fail
    timed = _timed(runs, core, images, console)
    if timed:
        print_runs(console, runs)
        files.append(draw_times(folder, runs))
    for line in left_out:
        console.print(line, highlight=False, markup=False)
    _print_facts(console, [("pictures" if i == 0 else "", str(file)) for i, file in enumerate(files)])
    facts = {"photograph": str(find_photo(image)), "size": size, "model": model, "blocks": depth}
    facts |= {"weights": loaded.source, "pretrained": loaded.pretrained, "layer": layer}
    return Found(facts, graph, clusterings, runs, timed, left_out, files)


def _timed(runs: list[Run], model: nn.Module, images: Tensor, console: Console) -> bool:
    """Times all runs and returns True; if that fails, prints why and returns False."""
    try:
        measure(runs, model, images, console)
    except (RuntimeError, ValueError) as error:
        console.print(f"No times: {str(error).splitlines()[0]}", style="yellow", highlight=False, markup=False)
        return False
    return True


def _writable(out: Path) -> Path:
    """Returns the folder of the pictures; creates it if missing."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=out):
            pass
    except (OSError, ValueError) as error:  # a file in the way, no permission, a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"Expected a folder to write pictures into (got {str(out)!r}: {reason}).") from error
    return out


def _check_size(embedding: Any, size: int) -> None:
    patch = embedding.patch_size
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
