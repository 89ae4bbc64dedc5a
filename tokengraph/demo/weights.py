"""Makes timm models with pretrained weights if a cache or a hub has them, else with random weights."""

from __future__ import annotations

import difflib
from typing import Any, NamedTuple

import torch
from torch import nn

from tokengraph.io.hub import address as _address
from tokengraph.io.hub import cached as _cached
from tokengraph.io.hub import reachable as _reachable


class Loaded(NamedTuple):
    """A model in eval mode, whether its weights are pretrained, and a description of where they come from."""

    model: nn.Module
    pretrained: bool
    source: str


def load_model(name: str, *, img_size: int, pretrained: bool = True, seed: int = 0) -> Loaded:
    """Makes a timm model without a head, for square images of ``img_size`` pixels.

    It looks for weights in the hub's cache, then asks the hub, for at most a few seconds. If both fail, weights are
    random.

    Args:
        name: A name that timm knows, with or without a tag.
        img_size: Side of the images in pixels; position embeddings are resampled to it.
        pretrained: Whether to look for weights.
        seed: Seed of random weights; the global generator does not change.

    Raises:
        ValueError: If timm does not know the name, or the model supports only one image size.
        ImportError: If timm is not installed; names the extra to install.
    """
    from tokengraph.compat import timm

    if not timm.is_model(name):
        known = timm.list_models()
        near = [k for k in known if k.startswith(name)] or difflib.get_close_matches(name, known, n=1, cutoff=0.65)
        hint = f" Did you mean {near[0]!r}?" if near else " See timm.list_models()."
        raise ValueError(f"Expected a model name that timm knows (got {name!r}).{hint}")

    def create(**options: Any) -> nn.Module:
        """Makes the model with seeded weights, and explains why timm cannot."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            try:
                return timm.create_model(name, num_classes=0, img_size=img_size, **options).eval()
            except (AssertionError, RuntimeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"Expected a vision transformer that takes img_size={img_size} (got {name!r}: "
                    f"{str(error).splitlines()[0] if str(error) else type(error).__name__}). "
                    "Try vit_small_patch16_224."
                ) from error

    if not pretrained:
        return Loaded(create(), False, "random weights, as asked for")
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    cached, address = _cached(config), _address(config)
    if cached is not None:
        overlay: dict[str, Any] = {"file": cached}
        if not cached.endswith(".npz"):  # the hub's files are plain state_dicts, also if the original file is not
            overlay["custom_load"] = False
        return Loaded(create(pretrained=True, pretrained_cfg_overlay=overlay), True, f"weights in {cached}")
    if address is None or not _reachable(address):
        reason = "this model has none" if address is None else f"no cache, and {address} is out of reach"
        return Loaded(create(), False, f"random weights ({reason})")
    try:
        return Loaded(create(pretrained=True), True, f"weights from {address}")
    except Exception as error:  # downloads and broken files may raise anything; the demo also works with random weights
        return Loaded(create(), False, f"random weights (download failed: {type(error).__name__})")
