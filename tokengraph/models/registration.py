"""Registers Fast-iTPN with timm."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from tokengraph.models.fast_itpn import CONFIGS, FastITPN
from tokengraph.models.pyramid import FastITPNPyramid

OFFICIAL = {
    "tiny": "fast_itpn_tiny_1112_patch16_224",
    "small": "fast_itpn_small_2220_patch16_224",
    "base": "fast_itpn_base_3324_patch16_224",
    "large": "fast_itpn_large_2240_patch16_256",
}
LEVELS = ("P2", "P3", "P4", "P5", "P6")


def register_with_timm() -> list[str]:
    """Registers every size with timm, so that ``timm.create_model("fast_itpn_tiny")`` works; official names too.

    Importing ``tokengraph.models`` calls this if timm is already imported, and never imports timm itself. With
    ``features_only=True`` timm makes a :class:`~tokengraph.models.FastITPNPyramid`; ``out_indices`` count P2, P3, ...

    Returns:
        All names, also those that were registered before.

    Raises:
        ImportError: If timm is not installed; names the extra to install.
    """
    from tokengraph.compat import import_timm

    timm, names = import_timm(), []
    for size, official in OFFICIAL.items():
        for name in (f"fast_itpn_{size}", official):
            names.append(name)
            if not timm.is_model(name):
                timm.models.register_model(_entry(name, size, 256 if official.endswith("256") else 224))
    return names


def register_if_imported() -> None:
    """Registers if timm is already imported; does nothing if timm is only half imported or broken."""
    timm = sys.modules.get("timm")
    if hasattr(timm, "create_model") and hasattr(timm, "is_model"):
        register_with_timm()


def _entry(name: str, size: str, pixels: int) -> Callable[..., nn.Module]:
    """Returns the entry point that timm calls, a function with the model's name."""

    def create(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Any = None,
        cache_dir: Any = None,
        features_only: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        **options: Any,
    ) -> nn.Module:
        """Makes the model with the arguments of timm; raises ValueError for pretrained weights: there are none."""
        if pretrained:
            raise ValueError(
                f"Expected pretrained=False for {name} (got True). No hub has its weights: get the authors' file, and "
                "load it with tokengraph.io.checkpoints.load_checkpoint(model, file)."
            )
        options.setdefault("img_size", pixels)
        if features_only:
            options.pop("num_classes", None)
            model: nn.Module = FastITPNPyramid(*CONFIGS[size], levels=[LEVELS[i] for i in out_indices], **options)
        else:
            model = FastITPN(*CONFIGS[size], **options)
        model.pretrained_cfg = model.default_cfg = {  # type: ignore[assignment]
            "architecture": name,
            "input_size": (options.get("in_chans", 3), *model.img_size),  # type: ignore[misc]
            "num_classes": options.get("num_classes", 1000),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"Fast-iTPN, {size}; see tokengraph.models.FastITPN."
    return create
