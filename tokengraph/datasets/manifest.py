"""The file ``dataset.json`` of a data set: its version, what it was made of, and what its shards hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from tokengraph.datasets.recipe import Recipe
from tokengraph.datasets.rows import schema_of
from tokengraph.evaluate.store import write_text

FORMAT, KIND, FILE = 1, "tokengraph data set", "dataset.json"
BACKENDS = ("sqlite", "rocksdb")


@dataclass(frozen=True)
class Manifest:
    """What is known of a data set.

    Args:
        facts: Model, weights, preprocessing and images; a folder with others is not resumed.
        recipe: How its graphs are made.
        channels: C of the features.
        patches: N, the patches of an image.
        images: Images, readable or not.
        chunk: Images of a chunk, which is added as a whole.
        shard: Chunks of a shard.
        backend: ``"sqlite"`` or ``"rocksdb"``.
        classes: Names of the classes; ``None`` if unknown.
        labels: Whether images have classes.
        counts: Graphs of each shard; ``None`` while the data set is not finished.
        versions: Versions of the packages that began it.
    """

    facts: Mapping[str, str]
    recipe: Recipe
    channels: int
    patches: int
    images: int
    chunk: int
    shard: int
    backend: str = "sqlite"
    classes: tuple[str, ...] | None = None
    labels: bool = False
    counts: tuple[int, ...] | None = None
    versions: str = ""

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return -(-self.images // self.chunk)

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.chunks // self.shard)

    @property
    def schema(self) -> dict[str, Any]:
        """PyG's schema of a row."""
        return schema_of(self.channels, self.patches, self.recipe.dtype)

    def chunks_of(self, shard: int) -> range:
        """Returns the numbers of a shard's chunks."""
        return range(shard * self.shard, min((shard + 1) * self.shard, self.chunks))

    def images_of(self, chunk: int) -> range:
        """Returns the numbers of a chunk's images."""
        return range(chunk * self.chunk, min((chunk + 1) * self.chunk, self.images))

    def file(self, root: Path, shard: int) -> Path:
        """Returns the file of a shard."""
        return root / "shards" / f"{shard:06d}.{'db' if self.backend == 'sqlite' else 'rocks'}"

    def finished(self, counts: list[int]) -> Manifest:
        """Returns the manifest of the finished data set."""
        return replace(self, counts=tuple(counts))

    def write(self, root: Path) -> None:
        """Writes the file, as a whole or not at all."""
        write_text(root / FILE, json.dumps({"kind": KIND, "format": FORMAT, **asdict(self)}, indent=1))


def read_manifest(root: Path) -> Manifest:
    """Reads and checks the file of a data set.

    Raises:
        ValueError: If there is none, or it has another format, or a value of a wrong type.
    """
    file = root / FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(
            f"Expected a data set of token graphs (got {str(root)!r}, which has no {FILE}). Make one: tokengraph graph "
            "DIR --out DATASET."
        ) from error
    except ValueError as error:
        raise ValueError(f"Expected {str(file)!r} as JSON (got other text: {error}).") from error
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise ValueError(f"Expected {str(file)!r} of a data set of token graphs (got another file).")
    if found.get("format") != FORMAT:
        newer = isinstance(found.get("format"), int) and found["format"] > FORMAT
        hint = "Update tokengraph" if newer else "Make it again: tokengraph graph"
        raise ValueError(f"Expected a data set of format {FORMAT} (got {found.get('format')!r}). {hint}.")
    return _checked(found, file)


def _checked(found: dict[str, Any], file: Path) -> Manifest:
    names = {field.name for field in fields(Manifest)}
    missing, unknown = sorted(names - set(found)), sorted(set(found) - names - {"kind", "format"})
    if missing or unknown:
        told = f"no {missing[0]!r}" if missing else f"an unknown {unknown[0]!r}"
        raise ValueError(f"Expected the keys of a data set in {str(file)!r} (got {told}).")
    given = {name: found[name] for name in names}
    for name in ("channels", "patches", "images", "chunk", "shard"):
        if isinstance(given[name], bool) or not isinstance(given[name], int) or given[name] < 1:
            raise ValueError(f"Expected {name} >= 1 in {str(file)!r} (got {given[name]!r}).")
    kinds: dict[str, tuple[type, ...]] = {"facts": (dict,), "recipe": (dict,), "labels": (bool,), "versions": (str,)}
    kinds |= {"classes": (list, type(None)), "counts": (list, type(None)), "backend": (str,)}
    for name, kind in kinds.items():
        if not isinstance(given[name], kind):
            raise ValueError(f"Expected {name} of another kind in {str(file)!r} (got {given[name]!r}).")
    if given["backend"] not in BACKENDS:
        raise ValueError(f"Expected backend: {', '.join(BACKENDS)} (got {given['backend']!r} in {str(file)!r}).")
    try:
        recipe = Recipe(**given["recipe"])
    except TypeError as error:
        raise ValueError(f"Expected a recipe in {str(file)!r} (got {given['recipe']!r}: {error}).") from error
    classes, counts = given["classes"], given["counts"]
    if counts is not None and not all(isinstance(c, int) and not isinstance(c, bool) and c >= 0 for c in counts):
        raise ValueError(f"Expected counts as numbers of graphs in {str(file)!r} (got {counts!r}).")
    made = Manifest(
        **{
            **given,
            "recipe": recipe,
            "classes": None if classes is None else tuple(str(c) for c in classes),
            "counts": None if counts is None else tuple(counts),
        }
    )
    if made.counts is not None and len(made.counts) != made.shards:
        raise ValueError(f"Expected counts of {made.shards} shards in {str(file)!r} (got {len(made.counts)}).")
    return made
