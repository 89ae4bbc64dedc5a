"""Arguments that several commands share, and what is made of them."""

from __future__ import annotations

import argparse
from typing import Any

MODEL = "timm name, transformers:REPOSITORY, open_clip:NAME:TAG or torchvision:NAME"


def add_weights(group: Any) -> None:
    """Adds the arguments that say which weights a model has and where it runs."""
    group.add_argument("--checkpoint", metavar="FILE", help="weights, instead of pretrained ones")
    group.add_argument(
        "--num-classes", metavar="N", type=int, help="classes of the checkpoint's head; 0 if it has none"
    )
    group.add_argument(
        "--random-weights", action="store_true", help="use random weights to try the command; figures are meaningless"
    )
    group.add_argument("--device", help="default: cuda if available, else cpu")


def add_labels(group: Any) -> None:
    """Adds the arguments that say how a folder of images is read."""
    group.add_argument("--labels", choices=("auto", "classes", "masks", "none"), default="auto", help="%(default)s")
    group.add_argument("--synsets", metavar="FILE", help="one line a class that begins with its folder's name")
    group.add_argument("--limit", metavar="N", type=int, help="largest number of images, drawn by --seed")


def source(options: argparse.Namespace) -> Any:
    """Returns the source of the model, as :func:`tokengraph.evaluate.source.source_of` does."""
    from tokengraph.evaluate.source import source_of

    return source_of(
        options.model,
        checkpoint=options.checkpoint,
        num_classes=options.num_classes,
        random_weights=options.random_weights,
    )


def runs(options: argparse.Namespace, **more: Any) -> Any:
    """Returns the settings of a run over images, :class:`tokengraph.evaluate.options.Options`."""
    from tokengraph.evaluate.options import Options

    return Options(
        batch_size=options.batch_size,
        chunk=options.chunk,
        limit=options.limit,
        device=options.device,
        amp=options.amp,
        seed=options.seed,
        workers=options.workers,
        progress=not options.quiet,
        **more,
    )


def images(path: str, **how: Any) -> Any:
    """Returns the images of a folder, or of a data set of a hub (``datasets:NAME:SPLIT``)."""
    from tokengraph.evaluate.folders import find_images
    from tokengraph.evaluate.hub import find_hub

    if path.startswith("datasets:"):
        return find_hub(path.partition(":")[2])
    return find_images(path, **how)
