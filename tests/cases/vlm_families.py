"""Further tiny vision-language models, from the settings in ``vlm_families.json``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from vlm_models import IMAGE, Case, by_prompt, made, packed, types

FAMILIES: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
RECURRENT = ("qwen3_5", "lfm2_vl")  # layers that no mask of keys describes
NEED_PIXELS = ("blip_2", "instructblip")


def images(side: int) -> Callable[[int], dict[str, Any]]:
    return lambda n: {"pixel_values": torch.randn(n, 3, side, side)}


def placed(n: int) -> dict[str, Any]:
    grid = torch.cartesian_prod(torch.arange(8), torch.arange(8))
    return {"pixel_values": torch.rand(n, 64, 48), "image_position_ids": grid.repeat(n, 1, 1)}


def sized(height: int, width: int) -> Callable[[int], dict[str, Any]]:
    sizes = torch.tensor([[height, width]])
    return lambda n: {"pixel_values": torch.randn(n, 3, height, width), "image_sizes": sizes.repeat(n, 1)}


def packs(width: int, more: dict[str, int] | None = None) -> Callable[[int], dict[str, Any]]:
    return lambda n: packed(n, width=width) | {name: torch.tensor([value] * n) for name, value in (more or {}).items()}


PIXELS: dict[str, Callable[..., Callable[..., dict[str, Any]]]] = {
    "images": images,
    "images_of_video": lambda side: lambda n: {"pixel_values_images": torch.randn(n, 3, side, side)},
    "tiles": lambda side: lambda n: {"pixel_values": torch.randn(n, 1, 3, side, side)},
    "sized": sized,
    "packed": packs,
    "placed": lambda: placed,
    "nested": lambda: by_prompt,
    "anyres": lambda: (
        lambda n: {
            "pixel_values": torch.randn(n, 3, 3, 32, 32),
            "image_sizes": torch.tensor([[32, 64]] * n),
        }
    ),
    "naflex": lambda: (
        lambda n: {
            "pixel_values": torch.randn(n, 16, 192),
            "spatial_shapes": torch.tensor([[4, 4]] * n),
            "pixel_attention_mask": torch.ones(n, 16, dtype=torch.long),
        }
    ),
    "squares": lambda: (
        lambda n: {
            "pixel_values": torch.randn(64 * n, 3, 4, 4),
            "image_grid_thw": torch.tensor([[1, 8, 8]] * n),
        }
    ),
    "questions": lambda: (
        lambda n: {
            "pixel_values": torch.randn(n, 3, 32, 32),
            "qformer_input_ids": torch.ones(n, 4, dtype=torch.long),
            "qformer_attention_mask": torch.ones(n, 4, dtype=torch.long),
        }
    ),
}
TYPES: dict[str, Callable[[torch.Tensor], dict[str, Any]]] = {
    "": lambda ids: {},
    "mm": types,
    "moe": lambda ids: {**types(ids), "moe_mm_token_type_ids": (ids == IMAGE).int()},
}


def build(name: str) -> Case:
    """Makes one of ``FAMILIES``; raises AttributeError if this transformers has none."""
    import transformers

    row = FAMILIES[name]
    kind, *settings = row["pixels"]
    model = made(row["model"], getattr(transformers, row["config"])(**row["settings"]))
    return Case(model, PIXELS[kind](*settings), row["tokens"], more=TYPES[row["types"]], nested=kind == "nested")
