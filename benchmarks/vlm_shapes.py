"""Vision-language models of realistic shapes with random weights and few layers, and prompts for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tokengraph.compat import transformers

VOCABULARY, IMAGE, VIDEO, START, END = 32000, 31990, 31991, 31992, 31993


@dataclass(frozen=True)
class Shape:
    """One model.

    Attributes:
        name: For the table.
        make: ``make(tower_layers, decoder_layers)`` builds it.
        side: Pixels of the image.
        smaller: Pixels of the control with a smaller image; 0: the model takes no smaller one.
        inputs: ``inputs(batch, side, text)`` makes the prompts.
        strategies: What is measured.
    """

    name: str
    make: Callable[[int, int], Any]
    side: int
    smaller: int
    inputs: Callable[[int, int, int], dict[str, torch.Tensor]]
    strategies: tuple[str, ...]


def llava(tower: int, decoder: int) -> Any:
    """LLaVA-1.5-7B's widths: CLIP ViT-L/14 at 336 px, Llama 2 7B."""
    vision = dict(
        model_type="clip_vision_model", hidden_size=1024, intermediate_size=4096, num_attention_heads=16,
        num_hidden_layers=tower, image_size=336, patch_size=14, projection_dim=768,
    )  # fmt: skip
    text = dict(
        model_type="llama", hidden_size=4096, intermediate_size=11008, num_attention_heads=32,
        num_key_value_heads=32, num_hidden_layers=decoder, vocab_size=VOCABULARY,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_layer=-2
    )
    return transformers.LlavaForConditionalGeneration(config)


def qwen(tower: int, decoder: int) -> Any:
    """Qwen2.5-VL-3B's widths."""
    vision = dict(
        depth=tower, hidden_size=1280, intermediate_size=3420, num_heads=16, patch_size=14, out_hidden_size=2048,
        window_size=112, fullatt_block_indexes=[tower - 1],
    )  # fmt: skip
    text = dict(
        hidden_size=2048, intermediate_size=11008, num_attention_heads=16, num_key_value_heads=2,
        num_hidden_layers=decoder, vocab_size=VOCABULARY, pad_token_id=0,
        rope_parameters=dict(rope_type="default", mrope_section=[16, 24, 24], rope_theta=1e6),
    )  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=START, vision_end_token_id=END,
    )  # fmt: skip
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def gemma(tower: int, decoder: int) -> Any:
    """Gemma 3 4B's widths: SigLIP So400m at 896 px."""
    vision = dict(
        model_type="siglip_vision_model", hidden_size=1152, intermediate_size=4304, num_attention_heads=16,
        num_hidden_layers=tower, image_size=896, patch_size=14,
    )  # fmt: skip
    text = dict(
        hidden_size=2560, intermediate_size=10240, num_attention_heads=8, num_key_value_heads=4, head_dim=256,
        num_hidden_layers=decoder, vocab_size=VOCABULARY,
    )  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=256, image_token_id=IMAGE
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def _prompt(batch: int, tokens: int, text: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(3, 30000, (batch, text), generator=generator)
    image = torch.full((batch, tokens), IMAGE)
    return torch.cat([words[:, : text // 2], image, words[:, text // 2 :]], dim=1)


def _counted(tokens: int) -> Callable[[int, int, int], dict[str, torch.Tensor]]:
    def inputs(batch: int, side: int, text: int) -> dict[str, torch.Tensor]:
        ids = _prompt(batch, tokens, text)
        types = {"token_type_ids": (ids == IMAGE).long()} if tokens == 256 else {}
        pixels = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, **types}

    return inputs


def _packed(batch: int, side: int, text: int) -> dict[str, torch.Tensor]:
    grid = side // 14
    ids = _prompt(batch, (grid // 2) ** 2, text)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == IMAGE).int(),
        "pixel_values": torch.randn(batch * grid**2, 1176, generator=torch.Generator().manual_seed(1)),
        "image_grid_thw": torch.tensor([[1, grid, grid]] * batch),
    }


SHAPES = {
    "llava": Shape("LLaVA-1.5-7B", llava, 336, 0, _counted(576), ("dpc-knn", "visionzip", "dpp", "grid-pool")),
    "qwen": Shape("Qwen2.5-VL-3B", qwen, 672, 336, _packed, ("dpc-knn", "tome", "dpp", "grid-pool")),
    "gemma": Shape("Gemma 3 4B", gemma, 896, 0, _counted(256), ("dpc-knn", "grid-pool")),
}
