"""Holds a model and makes the rows of images; shared by the command, by torchrun's processes and by Ray's actors."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from tokengraph.adapters.base import Adapter
from tokengraph.datasets.manifest import Manifest, read_manifest
from tokengraph.datasets.read import Prepared, prepare
from tokengraph.datasets.recipe import Recipe
from tokengraph.datasets.rows import UNKNOWN, Row, encode
from tokengraph.datasets.shards import open_shard
from tokengraph.evaluate.forms import Forms
from tokengraph.evaluate.images import Images
from tokengraph.evaluate.options import Options
from tokengraph.evaluate.own import find_own
from tokengraph.evaluate.source import Source


class Maker:
    """A model on a device, and a recipe.

    Args:
        source: The model.
        recipe: How graphs are made.
        options: Batch size, autocast, threads and device.
        local_rank: Number of this process on its machine, which chooses a GPU.

    Raises:
        ValueError: If the model is not supported, or the device is not there.
    """

    def __init__(self, source: Source, recipe: Recipe, options: Options, local_rank: int = 0) -> None:
        self.recipe, self.options = recipe, options
        self.forms = Forms(source, options.place(local_rank), random_weights=source.weights == "random")
        self.core: Any
        self.adapter: Adapter
        self.core, self.adapter = find_own(self.forms.model(), source.adapter)
        self.config = self.forms.config()

    @property
    def channels(self) -> int:
        """C of the features."""
        return self.adapter.channels(self.core)

    @property
    def patches(self) -> int:
        """N, the patches of an image."""
        return math.prod(self.adapter.grid(self.core))

    def read(self, images: Images, numbers: range) -> Prepared:
        """Reads images for :meth:`rows`."""
        return prepare(images, numbers, self.config, self.options.workers)

    def rows(self, images: Images, prepared: Prepared) -> list[Row]:
        """Runs the model on prepared images and returns the row of each graph.

        Raises:
            ValueError: If tokens are not finite, or the recipe does not fit them.
        """
        device, amp, rows = self.forms.device, self.options.amp, []
        for start in range(0, len(prepared.index), self.options.batch_size):
            stop = start + self.options.batch_size
            cast = nullcontext() if amp is None else torch.autocast(device.type, dtype=getattr(torch, amp))
            with torch.no_grad(), cast:
                graph, nodes = self.recipe.graphs(self.core, self.adapter, prepared.inputs[start:stop].to(device))
            for place, one in enumerate(graph.to("cpu").split(), start):
                number = prepared.index[place]
                rows.append(
                    encode(
                        one,
                        images.key(number),
                        self.recipe.dtype,
                        y=images.label(number) if images.has_labels else UNKNOWN,
                        cluster=None if nodes is None else nodes[place - start].cpu(),
                        mask=prepared.masks[place] if prepared.masks else None,
                    )
                )
        return rows

    def add(self, root: Path, manifest: Manifest, images: Images, chunk: int, prepared: Prepared | None = None) -> int:
        """Makes a chunk and adds it to its shard.

        Returns:
            Graphs added; 0 if another process was faster.
        """
        prepared = prepared or self.read(images, manifest.images_of(chunk))
        rows = self.rows(images, prepared)
        shard = open_shard(manifest, root, chunk // manifest.shard, write=True)
        try:
            return len(rows) if shard.add(chunk, rows, prepared.skipped) else 0
        finally:
            shard.close()


def missing_chunks(root: Path, manifest: Manifest, shard: int) -> list[int]:
    """Returns the numbers of a shard's chunks that are not stored yet."""
    if not manifest.file(root, shard).exists():
        return list(manifest.chunks_of(shard))
    opened = open_shard(manifest, root, shard, write=True)
    try:
        done = {one.chunk for one in opened.added()}
    finally:
        opened.close()
    return [chunk for chunk in manifest.chunks_of(shard) if chunk not in done]


def finish(root: Path) -> Manifest:
    """Marks a data set as finished.

    Raises:
        ValueError: If chunks are missing, or no image could be read.
    """
    manifest, counts, skipped = read_manifest(root), [], []
    for number in range(manifest.shards):
        if missing := missing_chunks(root, manifest, number):
            raise ValueError(
                f"Expected all chunks of {str(root)!r} (got none of chunk {missing[0]}). Repeat the command."
            )
        shard = open_shard(manifest, root, number, write=True)
        try:
            added = shard.added()
        finally:
            shard.close()
        counts.append(sum(one.count for one in added))
        skipped += [pair for one in added for pair in one.skipped]
    if not sum(counts):
        told = f"; first: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise ValueError(f"Expected images that can be read (got none of {manifest.images}{told}).")
    done = manifest.finished(counts)
    done.write(root)
    return done
