"""Official DINOv2 weights if their hub is reachable, otherwise the package's."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from torch import nn

from tokengraph.compat import timm
from truth import weights

MODEL = "vit_small_patch14_dinov2"
NAME = f"DINOv2 ViT-S/14, official weights (timm {MODEL})"
CHOICES = ("auto", "official", "package")
Build = Callable[[int], nn.Module]


@cache
def reachable(seconds: float = 5.0) -> bool:
    """Returns whether the hub answers, which spares timm's timeout of a minute."""
    host = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co").hostname or ""
    try:
        socket.create_connection((host, 443), timeout=seconds).close()
    except OSError:
        return False
    return True


def official(size: int) -> nn.Module:
    """Returns timm's model with its authors' weights, in eval mode."""
    return timm.create_model(MODEL, pretrained=True, img_size=size).eval()


def vit_s(folder: Path, choice: str) -> tuple[str, Build]:
    """Returns the name of a run's ViT-S/14 in tables, and a function that builds it for a size.

    Args:
        folder: Where packages were fetched.
        choice: ``"official"``, ``"package"``, or ``"auto"``: official if the hub is reachable.

    Raises:
        OSError: If the package is needed and missing.
        ValueError: For another choice.
    """
    if choice not in CHOICES:
        raise ValueError(f"Expected weights: {', '.join(CHOICES)} (got {choice!r}).")
    if choice == "official" or choice == "auto" and reachable():
        return NAME, official
    weights.initialisers(folder)  # a missing package is an error now
    return weights.NAME, lambda size: weights.vit_s(folder, size)
