"""Writes a data set of token graphs: many processes, resumed after a kill at any moment."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch_geometric
from torch import nn

from tokengraph.adapters.base import Adapter
from tokengraph.datasets.maker import Maker, finish, missing_chunks
from tokengraph.datasets.manifest import BACKENDS, FILE, Manifest, read_manifest
from tokengraph.datasets.read import Prepared
from tokengraph.datasets.recipe import Recipe
from tokengraph.datasets.shards import Shards
from tokengraph.evaluate.facts import digest
from tokengraph.evaluate.folders import find_images
from tokengraph.evaluate.images import Images, limited
from tokengraph.evaluate.options import Options
from tokengraph.evaluate.progress import Progress
from tokengraph.evaluate.ranks import Ranks, find_ranks
from tokengraph.evaluate.source import Source, source_of
from tokengraph.evaluate.store import fingerprint
from tokengraph.kinds import explains

LARGEST = 1024  # images of a shard


@dataclass(frozen=True)
class Written:
    """What a run wrote.

    Args:
        root: Folder of the data set.
        graphs: Graphs in the data set.
        new: Graphs that this run added, in all processes.
        skipped: Name and reason of each image that could not be read.
        bytes: Bytes of all shards on disk.
        seconds: Wall time of this run, without loading the model.
    """

    root: Path
    graphs: int
    new: int
    skipped: tuple[tuple[str, str], ...]
    bytes: int
    seconds: float

    @property
    def bytes_per_image(self) -> float:
        """Bytes on disk for a graph."""
        return self.bytes / self.graphs

    @property
    def images_per_second(self) -> float:
        """Images of this run in a second, read and unread ones; 0 if all was there."""
        return self.new / self.seconds if self.new else 0.0


@explains
def write_dataset(
    model: str | nn.Module | Source,
    data: Images | str | os.PathLike[str],
    out: str | os.PathLike[str],
    recipe: Recipe | None = None,
    *,
    backend: str = "sqlite",
    options: Options | None = None,
    adapter: Adapter | None = None,
) -> Written:
    """Makes the token graph of each image and stores it, for :class:`tokengraph.TokenGraphDataset`.

    A repeated call resumes a stopped one: it makes the chunks that are missing. Processes of ``torchrun`` share the
    shards; the data set does not depend on their number.

    Args:
        model: A name, a module in eval mode or a source, as for :func:`tokengraph.evaluate`.
        data: Images, or a folder for :func:`tokengraph.evaluate.folders.find_images`.
        out: Folder of the data set, on one file system for all processes.
        recipe: Layer, edges, coarsening and number format.
        backend: ``"sqlite"`` or ``"rocksdb"``.
        options: Batch size, images between two saves (``chunk``), limit, device, autocast, threads, progress.
        adapter: The adapter of a model of a user's own.

    Returns:
        What the run wrote. In several processes all return the same sizes.

    Raises:
        ValueError: If the folder has another data set, the recipe does not fit the model, or no image can be read.
        ImportError: If the backend is not installed.

    Cost: one run of the model on each image, its edges and its coarsening; one transaction on disk for each chunk.
    """
    options, recipe, root = options or Options(), recipe or Recipe(), Path(out)
    if backend not in BACKENDS:
        raise ValueError(f"Expected backend: {', '.join(BACKENDS)} (got {backend!r}).")
    images = limited(data if isinstance(data, Images) else find_images(data), options.limit, options.seed)
    if not len(images):
        raise ValueError("Expected at least one image (got none).")
    ranks = find_ranks()
    maker = Maker(source_of(model, adapter=adapter), recipe, options, ranks.local)
    with _left_as_it_was(root, ranks):
        manifest = _begin(root, _plan(maker, images, backend), ranks)
        start = time.monotonic()
        before = _stored(root, manifest) if ranks.first else 0
        ranks.wait()
        _run(maker, root, manifest, images, ranks)
        ranks.wait()
        if ranks.first:
            finish(root)
        ranks.wait()
    return _told(root, before, time.monotonic() - start)


@contextmanager
def _left_as_it_was(root: Path, ranks: Ranks) -> Iterator[None]:
    """Takes a data set that this run began away again, if the run is refused before it has a graph.

    Only then: after a kill or an interruption another process may be at work in the folder. Files that were there stay.
    """
    new, before, began = not root.exists(), _files(root), ranks.first and not (root / FILE).exists()
    try:
        yield
    except (ValueError, TypeError):
        with suppress(ValueError, OSError):  # the error that stopped the run counts
            if began and (root / FILE).exists() and not _graphs(root):
                for path in sorted(_files(root) - before, reverse=True):  # files before their folders
                    path.rmdir() if path.is_dir() else path.unlink()
                if new:
                    root.rmdir()
        raise


def _files(root: Path) -> set[Path]:
    """Returns the files and folders of a data set that are there."""
    shards = root / "shards"
    return {path for path in (root / FILE, shards, *shards.rglob("*")) if path.exists()}


def _graphs(root: Path) -> int:
    """Returns the number of graphs in finished chunks."""
    manifest = read_manifest(root)
    shards = Shards(root, manifest)
    try:
        there = [n for n in range(manifest.shards) if manifest.file(root, n).exists()]
        return sum(one.count for n in there for one in shards.shard(n).added())
    finally:
        shards.close()


def begin(maker: Maker, images: Images, out: str | os.PathLike[str], backend: str = "sqlite") -> Manifest:
    """Begins a data set, or checks that the folder has the same one; other jobs than ``write_dataset`` call it.

    Raises:
        ValueError: If the folder has another data set.
    """
    return _begin(Path(out), _plan(maker, images, backend), Ranks())


def _plan(maker: Maker, images: Images, backend: str) -> Manifest:
    from tokengraph import __version__

    source, options = maker.forms.source, maker.options
    chunks = -(-len(images) // options.chunk)
    facts = {
        "model": source.name,
        "weights": digest(maker.forms.model()),
        "preprocessing": maker.config.describe(),
        "images": fingerprint([images.stamp(i) for i in range(len(images))]),
        "data": images.name,
        "masks": str(images.has_masks),
        "labels": fingerprint([str(images.label(i)) for i in range(len(images))]) if images.has_labels else "",
        "amp": str(options.amp),
    }
    return Manifest(
        facts=facts,
        recipe=maker.recipe,
        channels=maker.channels,
        patches=maker.patches,
        images=len(images),
        chunk=options.chunk,
        shard=max(1, min(LARGEST // options.chunk, chunks // 16)),
        backend=backend,
        classes=None if images.classes is None else tuple(str(c) for c in images.classes),
        labels=images.has_labels,
        versions=f"tokengraph {__version__}, torch {torch.__version__}, PyG {torch_geometric.__version__}",
    )


def _begin(root: Path, ours: Manifest, ranks: Ranks) -> Manifest:
    """Writes the manifest, or returns the folder's own if it tells of the same data set."""
    if ranks.first and not (root / FILE).exists():
        try:
            root.mkdir(parents=True, exist_ok=True)
            ours.write(root)
        except OSError as error:
            raise ValueError(f"Expected a folder to write to (got {str(root)!r}: {error.strerror}).") from error
    ranks.wait()
    theirs = read_manifest(root)
    pairs = {key: (theirs.facts.get(key), value) for key, value in ours.facts.items()}
    pairs |= {key: (theirs.recipe.as_dict()[key], value) for key, value in ours.recipe.as_dict().items()}
    pairs["backend"] = theirs.backend, ours.backend
    if other := [f"{key}: {there!r} there, {now!r} now" for key, (there, now) in pairs.items() if there != now]:
        raise ValueError(
            f"Expected a folder of the same data set to resume (got {str(root)!r} of another: {'; '.join(other)}). "
            "Give a new folder."
        )
    return theirs  # with the chunks that it was begun with


def _run(maker: Maker, root: Path, manifest: Manifest, images: Images, ranks: Ranks) -> None:
    """Makes the missing chunks of this process's shards; the next chunk is read while the model runs."""
    mine = [n for n in range(manifest.shards) if ranks.mine(n)]
    total = sum(len(manifest.images_of(c)) for n in mine for c in manifest.chunks_of(n))
    todo = [c for n in mine for c in missing_chunks(root, manifest, n)]
    left = sum(len(manifest.images_of(c)) for c in todo)
    with Progress(total, "images", maker.options.progress and ranks.first) as progress:
        if total > left:
            progress.step(total - left)
        for chunk, prepared in _ahead(maker, manifest, images, todo):
            maker.add(root, manifest, images, chunk, prepared)
            progress.step(len(manifest.images_of(chunk)))


def _ahead(maker: Maker, manifest: Manifest, images: Images, chunks: list[int]) -> Iterator[tuple[int, Prepared]]:
    """Yields each chunk with its images, and reads the next one in the meantime."""
    with ThreadPoolExecutor(1) as pool:
        waiting = None
        for chunk, following in itertools.zip_longest(chunks, chunks[1:]):
            prepared = (waiting or pool.submit(maker.read, images, manifest.images_of(chunk))).result()
            waiting = None if following is None else pool.submit(maker.read, images, manifest.images_of(following))
            yield chunk, prepared


def _stored(root: Path, manifest: Manifest) -> int:
    """Returns the number of images in finished chunks."""
    missing = [c for n in range(manifest.shards) for c in missing_chunks(root, manifest, n)]
    return manifest.images - sum(len(manifest.images_of(c)) for c in missing)


def _told(root: Path, before: int, seconds: float) -> Written:
    manifest = read_manifest(root)
    shards = Shards(root, manifest)
    skipped = [p for n in range(manifest.shards) for one in shards.shard(n).added() for p in one.skipped]
    shards.close()
    files = [f for f in (root / "shards").rglob("*") if f.is_file()]
    size = sum(f.stat().st_size for f in files)
    return Written(root, sum(manifest.counts or ()), manifest.images - before, tuple(skipped), size, seconds)
