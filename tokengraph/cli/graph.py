"""``tokengraph graph`` makes the token graph of an image, or a data set of the token graphs of a folder."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tokengraph.cli import arguments

EPILOG = """\
edges (--connect):       knn:8   knn:8,cosine   local:8   grid   grid:4   window:50   none
coarsening (--coarsen):  ailurus:0.25   dpc-knn:49,k=5   "tome:[0.5, 0.5]"   none
                         (tokens an image, a share of them, or one of these for each level)

examples:
  tokengraph graph photo.jpg --connect knn:8 --coarsen ailurus:0.25 --plot graph.png
  tokengraph graph photos --model vit_small_patch14_dinov2 --norm --connect knn:8 --dtype float16 --out graphs
  torchrun --nproc-per-node 2 -m tokengraph graph photos --out graphs

Read a data set:  tg.TokenGraphDataset("graphs"), in PyG's DataLoader; sub-folders of DIR are its classes (graph.y).
Repeat the same command to resume a stopped run. Files that cannot be read are reported and left out.
"""


def add(commands: Any) -> None:
    """Adds the command's arguments."""
    parser = commands.add_parser(
        "graph",
        help="make the token graph of an image, or a data set of the graphs of a folder",
        description="Runs a vision transformer on images and stores its tokens as graphs of PyG.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", metavar="IMAGE|DIR", type=Path, help="a file, or a folder as tokengraph eval takes")
    graph = parser.add_argument_group("graph")
    graph.add_argument("--layer", metavar="L", type=int, default=-1, help="finished blocks; -1: all (%(default)s)")
    graph.add_argument("--norm", action="store_true", help="apply the model's final norm to the tokens")
    graph.add_argument("--connect", metavar="EDGES", default="knn:8", help="see below (%(default)s)")
    graph.add_argument("--coarsen", metavar="NAME:KEEP", default="none", help="see below (%(default)s)")
    graph.add_argument("--dtype", choices=("float32", "float16"), default="float32", help="stored (%(default)s)")
    graph.add_argument("--backend", choices=("sqlite", "rocksdb"), default="sqlite", help="of DIR (%(default)s)")
    images = parser.add_argument_group("images")
    arguments.add_labels(images)
    images.add_argument("--seed", metavar="N", type=int, default=0, help="%(default)s")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", metavar="NAME", default="vit_small_patch16_224.dino", help="as for eval (%(default)s)"
    )
    arguments.add_weights(model)
    model.add_argument("--amp", choices=("bfloat16", "float16"), help="run under autocast")
    run_ = parser.add_argument_group("run")
    run_.add_argument("--out", metavar="PATH", type=Path, help="data set (outputs/graphs), or file of one graph")
    run_.add_argument("--plot", metavar="FILE", type=Path, help="of one image: draw its graph (extra: viz)")
    run_.add_argument("--batch-size", metavar="N", type=int, default=32, help="%(default)s")
    run_.add_argument("--chunk", metavar="N", type=int, default=64, help="images between two saves (%(default)s)")
    run_.add_argument("--workers", metavar="N", type=int, default=2, help="threads that read images (%(default)s)")
    run_.add_argument("--json", action="store_true", help="print JSON")
    run_.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=run, resume="Repeat the same command to resume.")


def run(options: argparse.Namespace) -> int:
    """Makes one graph or a data set."""
    from tokengraph.datasets.recipe import Recipe

    recipe = Recipe(options.layer, options.norm, options.connect, options.coarsen, options.dtype)
    how = arguments.runs(options)
    if not options.images.exists():
        raise ValueError(f"Expected an image or a folder (got {str(options.images)!r}: not there).")
    if options.plot and not options.images.is_file():
        raise ValueError(f"Expected one image to plot (got the folder {str(options.images)!r}).")
    source = arguments.source(options)
    return (_one if options.images.is_file() else _many)(options, source, recipe, how)


def _one(options: argparse.Namespace, source: Any, recipe: Any, how: Any) -> int:
    """Makes the graph of one file."""
    import torch

    from tokengraph.datasets.maker import Maker
    from tokengraph.datasets.rows import decode, row_bytes
    from tokengraph.evaluate.folders import Files

    maker = Maker(source, recipe, how)
    images = Files(options.images.parent, [options.images])
    prepared = maker.read(images, range(1))
    if prepared.skipped:
        raise ValueError(f"Expected an image that can be read (got {str(options.images)!r}: {prepared.skipped[0][1]}).")
    (row,) = maker.rows(images, prepared)
    graph = decode(row, None, labels=False)
    out = options.out or Path("outputs/graphs") / f"{options.images.stem}.pt"
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(graph, out)
    if options.plot:
        _plot(graph, maker.config, prepared.inputs[0], options.plot)
    edges = 0 if graph.edge_index is None else graph.edge_index.size(1)
    found = {"out": str(out), "nodes": graph.num_nodes, "edges": edges, "channels": graph.x.size(1)}
    found |= {"grid": list(graph.grid), "prefix": graph.prefix.size(1) if "prefix" in graph else 0}
    found |= {"dtype": str(graph.x.dtype).removeprefix("torch."), "bytes": row_bytes(row)}
    print(json.dumps(found) if options.json else f"{graph}, {found['bytes']:,} bytes\nWritten to {out}")
    return 0


def _plot(graph: Any, config: Any, pixels: Any, file: Path) -> None:
    """Draws a graph over the photograph as the model sees it, scaled and cut."""
    import torch

    from tokengraph.viz import plot_graph

    mean, std = (torch.tensor(values)[:, None, None] for values in (config.mean, config.std))
    file.parent.mkdir(parents=True, exist_ok=True)
    plot_graph((pixels * std + mean).clamp(0, 1), graph).savefig(file)


def _many(options: argparse.Namespace, source: Any, recipe: Any, how: Any) -> int:
    """Makes a data set of a folder."""
    from tokengraph.datasets.write import write_dataset
    from tokengraph.evaluate.folders import find_images
    from tokengraph.evaluate.ranks import find_ranks

    images = find_images(options.images, labels=options.labels, synsets=options.synsets)
    out = options.out or Path("outputs/graphs")
    written = write_dataset(source, images, out, recipe, backend=options.backend, options=how)
    if not find_ranks().first:
        return 0
    for path, reason in written.skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    if options.json:
        found = {"out": str(out), "graphs": written.graphs, "new": written.new, "skipped": written.skipped}
        found |= {"bytes": written.bytes, "bytes_per_image": round(written.bytes_per_image)}
        found |= {"seconds": round(written.seconds, 3), "images_per_second": round(written.images_per_second, 3)}
        print(json.dumps(found))
        return 0
    rate = f"{written.images_per_second:.3g} images a second" if written.new else "nothing was missing"
    print(f"{written.graphs:,} graphs, {len(written.skipped)} images skipped; {rate}")
    print(f"{written.bytes_per_image:,.0f} bytes an image, {written.bytes / 2**20:,.1f} MiB in {out}")
    print(f'Read it with tg.TokenGraphDataset("{out}")')
    return 0
