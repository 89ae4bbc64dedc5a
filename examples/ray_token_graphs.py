"""Makes a data set of token graphs as a Ray Data job: readers prepare images, actors hold the model and write shards.

    python examples/ray_token_graphs.py photos graphs --actors 2
    python examples/ray_token_graphs.py photos graphs --address auto       on a cluster; both folders are shared

Needs Ray (pip install "ray[data]"). A chunk of images is one task. Writing a chunk is one transaction that leaves out
a chunk that is there: Ray may repeat the tasks of a worker that died, and a repeated command resumes a stopped job.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import ray

import tokengraph as tg
from tokengraph.datasets.maker import Maker, finish, missing_chunks
from tokengraph.datasets.manifest import read_manifest
from tokengraph.datasets.read import Prepared, prepare
from tokengraph.datasets.recipe import Recipe
from tokengraph.datasets.write import begin
from tokengraph.evaluate import Options
from tokengraph.evaluate.folders import find_images
from tokengraph.evaluate.source import source_of


def read(row: dict[str, Any], photos: str, root: str, config: Any) -> dict[str, Any]:
    """Reads and prepares the images of one chunk; runs in tasks without a model."""
    numbers = read_manifest(Path(root)).images_of(int(row["chunk"]))
    prepared = prepare(find_images(photos), numbers, config, workers=1)
    return {"chunk": row["chunk"], "prepared": prepared}


class Graphs:
    """An actor with the model: makes the graphs of a chunk and adds them to their shard."""

    def __init__(self, photos: str, root: str, model: str, random_weights: bool, faulty: str) -> None:
        self.root, self.faulty = Path(root), faulty
        self.images, self.manifest = find_images(photos), read_manifest(Path(root))
        source = source_of(model, random_weights=random_weights)
        self.maker = Maker(source, self.manifest.recipe, Options(progress=False))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        added = []
        for chunk, prepared in zip(batch["chunk"], batch["prepared"], strict=True):
            assert isinstance(prepared, Prepared)
            if self.faulty and not Path(self.faulty).exists():  # for tests: the first chunk kills its worker
                Path(self.faulty).touch()
                os._exit(1)
            added.append(self.maker.add(self.root, self.manifest, self.images, int(chunk), prepared))
        return {"chunk": batch["chunk"], "added": added}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos")
    parser.add_argument("out")
    parser.add_argument("--model", default="vit_small_patch16_224.dino")
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--connect", default="knn:8")
    parser.add_argument("--coarsen", default="none")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--chunk", type=int, default=64, help="images of a task")
    parser.add_argument("--actors", type=int, default=2, help="processes with the model")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of each actor")
    parser.add_argument("--address", help="of a cluster; by default Ray starts on this machine")
    parser.add_argument("--faulty", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    recipe = Recipe(connect=given.connect, coarsen=given.coarsen, dtype=given.dtype)
    photos, out = os.path.abspath(given.photos), os.path.abspath(given.out)
    source = source_of(given.model, random_weights=given.random_weights)
    maker = Maker(source, recipe, Options(chunk=given.chunk, progress=False, device="cpu"))
    manifest = begin(maker, find_images(photos), out)
    todo = [chunk for n in range(manifest.shards) for chunk in missing_chunks(Path(out), manifest, n)]
    ray.init(address=given.address, include_dashboard=False, num_cpus=None if given.address else given.actors + 1)
    if todo:
        chunks = ray.data.from_items([{"chunk": chunk} for chunk in todo], override_num_blocks=len(todo))
        prepared = chunks.map(read, fn_kwargs={"photos": photos, "root": out, "config": maker.config})
        done = prepared.map_batches(
            Graphs,
            fn_constructor_args=(photos, out, given.model, given.random_weights, given.faulty),
            batch_size=1,
            concurrency=given.actors,
            num_gpus=given.gpus,
            max_restarts=-1,
            max_task_retries=-1,
        )
        print(f"{done.sum('added')} graphs added")
    ray.shutdown()
    finish(Path(out))
    dataset = tg.TokenGraphDataset(out)
    print(f"{dataset}; skipped {len(dataset.skipped)}")


if __name__ == "__main__":
    main()
