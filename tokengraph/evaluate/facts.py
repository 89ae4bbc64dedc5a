"""The facts that identify a run's predictions, and the facts that a report states."""

from __future__ import annotations

import platform
import zlib
from typing import Any

import torch
from torch import nn

from tokengraph.evaluate.costs import CONVENTION
from tokengraph.evaluate.forms import Forms
from tokengraph.evaluate.images import Images
from tokengraph.evaluate.options import Options
from tokengraph.evaluate.run import Runner
from tokengraph.evaluate.source import Source
from tokengraph.evaluate.store import fingerprint


def identity(
    source: Source,
    forms: Forms,
    images: Images,
    training: Images | None,
    options: Options,
    decode: Any,
    probe: str | None,
) -> dict[str, Any]:
    """Returns everything that predictions depend on; a folder with other facts is not resumed."""
    from tokengraph import __version__

    head = digest(decode) if isinstance(decode, nn.Module) else getattr(decode, "__qualname__", decode)
    return {
        "model": source.name,
        "weights": digest(forms.model()),
        "preprocessing": forms.config().describe(),
        "images": fingerprint([images.stamp(i) for i in range(len(images))]),
        "train": "" if training is None else fingerprint([training.stamp(i) for i in range(len(training))]),
        "masks": images.has_masks,
        "decode": head,
        "features": probe is not None,
        "patch probe": options.l2 if images.has_masks and probe is not None else "",
        "batch_size": options.batch_size,
        "chunk": options.chunk,
        "amp": options.amp,
        "device": forms.device.type,
        "tokengraph": __version__,
        "torch": torch.__version__,
    }


def digest(model: nn.Module) -> str:
    """Returns a checksum of all weights."""
    total = 0
    for name, value in model.state_dict().items():
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8) if value.numel() else torch.zeros(0)
        total = zlib.crc32(raw.numpy().tobytes(), zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def facts_of(runner: Runner, images: Images, count: int, probe: str | None) -> dict[str, Any]:
    """Returns the facts of a run that a report states.

    Args:
        runner: The runner of the evaluation.
        images: The set.
        count: Its number of readable images.
        probe: The kind of probe, or ``None``.
    """
    from tokengraph import __version__

    device = runner.forms.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    facts = {
        "model": runner.forms.source.name,
        "weights": runner.forms.source.weights,
        "data": images.name,
        "images": count,
        "preprocessing": runner.forms.config().describe(),
        "cost": CONVENTION,
        "device": f"{name}, {torch.get_num_threads()} threads",
        "batch": f"{runner.options.timed(device)} images for time and memory",
        "versions": f"tokengraph {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
    }
    if probe is not None:
        on = "each patch, least squares" if runner.probes else "the class token and the mean patch"
        facts["probe"] = f"{probe} on {on}"
    return {**facts, **({"notes": "; ".join(images.notes)} if images.notes else {})}
