"""Draws every strategy on three photographs by the real ViT-S/14: ``make gallery`` writes ``docs/gallery/``.

    python benchmarks/gallery.py                  every strategy, and the picture of the README
    python benchmarks/gallery.py --only tome atc  some of them

Weights come from ``benchmarks/truth`` (``python benchmarks/truth fetch``; $TRUTH_DATA and $TRUTH_WEIGHTS as there). The
photographs are those of scikit-image: chelsea and coffee (CC0), astronaut (NASA, public domain).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from truth.official import vit_s
from truth.photographs import photographs

import tokengraph as tg
from tokengraph import viz
from tokengraph.evaluate.config import DataConfig
from tokengraph.optional import optional
from tokengraph.select.base import Select
from tokengraph.viz.features import feature_colors

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))
from website.gallery import why_not  # noqa: E402

OUT = ROOT / "docs" / "gallery"
NAMES = ("chelsea", "coffee", "astronaut")
SIDE, PATCH = 448, 14  # pixels; 32 x 32 patches
GRID = (SIDE // PATCH, SIDE // PATCH)
KEEP, LAYER = 0.12, 6  # share of the patches in the end; the block after which a strategy acts that acts once
TILE = 216  # pixels of a tile in the gallery
QUALITY = 50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="strategies; default: all, and the README's picture")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("TRUTH_DATA") or ROOT / "truth-data"))
    options = parser.parse_args()
    named, build = vit_s(options.data, os.environ.get("TRUTH_WEIGHTS") or "auto")
    print(f"{named}, {SIDE} px")
    model, photos = build(SIDE), load()
    OUT.mkdir(parents=True, exist_ok=True)
    if not options.only:
        write(strip(list(photos), (SIDE // 2, SIDE // 2)), OUT / "photographs.webp")
        write(headline(model, photos), ROOT / "docs" / "img" / "headline.webp", quality=80)
    for name in options.only or sorted(tg.registry()):
        reason = draw(model, photos, name)
        print(f"{name}: {reason or 'drawn'}")
    size = sum(file.stat().st_size for file in OUT.glob("*.webp"))
    print(f"{size / 1e6:.2f} MB in all")
    return 0


def load() -> Tensor:
    """The photographs, cut to squares, ``[3, 3, S, S]`` from 0 to 1."""
    made = []
    for name in NAMES:
        photo = photographs()[name]
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 3
        square = photo.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        made.append(torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1) / 255)
    return torch.stack(made)


def normal(photos: Tensor) -> Tensor:
    """Normalised by ImageNet's mean and deviation."""
    config = DataConfig(SIDE)
    mean, std = (torch.tensor(v)[:, None, None] for v in (config.mean, config.std))
    return (photos - mean) / std


def schedule(select: Select, depth: int = 12) -> object:
    """A schedule that keeps ``KEEP`` of the patches: in every block, or once for strategies that act on the grid."""
    patches = GRID[0] * GRID[1]
    if select.ragged:
        return None
    if select.needs_grid or select.placement != "inside":
        return {LAYER: max(round(KEEP * patches), select.fewest(patches))}
    return -(-round((1 - KEEP) * patches) // depth)


@torch.no_grad()
def draw(model: nn.Module, photos: Tensor, name: str) -> str:
    """Writes the picture of one strategy; returns the reason if it has none."""
    select = tg.resolve(name)
    if why := why_not(name):
        return why
    fine = tg.TokenGraph.from_model(model, normal(photos), layer=LAYER)
    with tg.attach(model, select, schedule(select)) as handle:
        model(normal(photos))
        source = handle.trace.source(len(model.blocks) - (select.placement == "before"))  # type: ignore[arg-type]
    coarse = tg.contract(fine, source)
    coarse = coarse.connect_knn(min(3, min(coarse.counts) - 1), cosine=True)
    tiles: list[np.ndarray | Tensor] = []
    for index, photo in enumerate(photos):
        tiles.append(viz.cluster_overlay(photo, source, GRID, index=index, line=1))
        tiles.append(graph_tile(photo, coarse, index))
    write(strip(tiles, (TILE, TILE)), OUT / f"{name}.webp")
    return ""


def graph_tile(photo: Tensor, graph: tg.TokenGraph, index: int = 0, side: int = 2 * TILE) -> np.ndarray:
    """The graph over a photograph, without words, as pixels ``[side, side, 3]`` from 0 to 1."""
    figure = optional("matplotlib.figure").Figure(figsize=(side / 100, side / 100), dpi=100)
    canvas = optional("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    ax = figure.add_axes((0, 0, 1, 1))
    viz.plot_graph(photo, graph, index=index, ax=ax, distance=False, max_edges=2500)
    ax.set_title("", loc="left")
    ax.set_title("", loc="right")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3] / 255


@torch.no_grad()
def headline(model: nn.Module, photos: Tensor) -> np.ndarray:
    """The README's picture: photograph, token graph, clusters, features lifted from them."""
    photo = photos[:1]
    graph = tg.TokenGraph.from_model(model, normal(photo), layer=LAYER).connect_knn(4, cosine=True)
    with tg.attach(model, "atc", {LAYER: 64}) as handle:
        features = model.forward_features(normal(photo))  # type: ignore[operator]
        source, lifted = handle.trace.source(LAYER), handle.trace.lift(features)
    tiles = [
        photo[0],
        graph_tile(photo[0], graph, side=SIDE),
        viz.cluster_overlay(photo[0], source, GRID),
        feature_colors(lifted, GRID),
    ]
    return strip(tiles, (320, 320), gap=6)


def strip(tiles: list[np.ndarray | Tensor], shape: tuple[int, int], gap: int = 3) -> np.ndarray:
    """Tiles side by side, ``[H, W, 3]`` uint8 with white gaps."""
    found = []
    for tile in tiles:
        pixels = Image.fromarray((viz.to_rgb(tile) * 255).round().astype(np.uint8))
        small = pixels.width < shape[0]
        found.append(np.asarray(pixels.resize(shape, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)))
    white = np.full((shape[1], gap, 3), 255, np.uint8)
    return np.concatenate([part for tile in found for part in (tile, white)][:-1], axis=1)


def write(pixels: np.ndarray, file: Path, quality: int = QUALITY) -> None:
    """Writes a WebP file."""
    Image.fromarray(pixels).save(file, quality=quality, method=6)


if __name__ == "__main__":
    sys.exit(main())
