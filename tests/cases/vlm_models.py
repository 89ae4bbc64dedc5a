"""Tiny vision-language models with random weights, and prompts for them, one builder a family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from needs import library

library("transformers")  # with a torchvision that its models can import
TEXT = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=120, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
SIGLIP = dict(
    model_type="siglip_vision_model", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
    num_attention_heads=4, image_size=32, patch_size=8,
)  # fmt: skip
CLIP = {**SIGLIP, "model_type": "clip_vision_model", "num_hidden_layers": 3, "projection_dim": 32}
MROPE = dict(rope_type="default", mrope_section=[1, 1, 2], rope_theta=10000.0)
IMAGE, VIDEO, START, END = 110, 111, 112, 113
BUILDERS: dict[str, Callable[[], Case]] = {}


@dataclass
class Case:
    """One family.

    Args:
        model: The model.
        pixels: ``pixels(n)`` makes the vision inputs of n images; ``nested`` families get the images by prompt.
        tokens: Placeholders of one image.
        grid: Its tile's grid.
        more: Makes further inputs of ids ``[B, L]``.
    """

    model: Any
    pixels: Callable[[int], dict[str, Any]]
    tokens: int
    grid: tuple[int, int] | None = None
    more: Callable[[torch.Tensor], dict[str, Any]] = lambda ids: {}
    wrap: tuple[list[int], list[int]] = ([START], [END])
    image: int = IMAGE
    nested: bool = False
    suffix_type: int = 0

    def prompt(self, images: int = 1, text: int = 3, seed: int = 0) -> list[int]:
        """A prompt with some text before, between and behind its images."""
        generator = torch.Generator().manual_seed(seed)
        draw = lambda n: torch.randint(3, 100, (n,), generator=generator).tolist()  # noqa: E731
        ids = [1, *draw(text)]
        for _ in range(images):
            ids += [*self.wrap[0], *[self.image] * self.tokens, *self.wrap[1], *draw(2)]
        return [*ids, *draw(text)]

    def inputs(self, images: tuple[int, ...] = (1,), seed: int = 0) -> dict[str, Any]:
        """A left-padded batch: one prompt with so many images for each number."""
        prompts = [self.prompt(n, 3 + i, seed + i) for i, n in enumerate(images)]
        length = max(map(len, prompts))
        ids = torch.tensor([[0] * (length - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts])
        torch.manual_seed(seed)
        pixels = self.pixels(images) if self.nested else self.pixels(sum(images))  # type: ignore[arg-type]
        return {"input_ids": ids, "attention_mask": mask, **self.more(ids), **pixels}


def builder(name: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    def keep(function: Callable[[], Case]) -> Callable[[], Case]:
        BUILDERS[name] = function
        return function

    return keep


def made(kind: str, config: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).eval()
    for weight in model.parameters():  # Gemma 3's projector starts at zero, which would make all images alike
        if weight.dim() > 1 and not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return model


def llama(**more: Any) -> dict[str, Any]:
    return {"model_type": "llama", **TEXT, **more}


@builder("llava")
def llava() -> Case:
    from transformers import LlavaConfig

    config = LlavaConfig(vision_config=CLIP, text_config=llama(), image_token_id=IMAGE, vision_feature_layer=-2)
    return Case(
        made("LlavaForConditionalGeneration", config),
        lambda n: {"pixel_values": torch.randn(n, 3, 32, 32)}, 16, (4, 4),
    )  # fmt: skip


@builder("llava_next")
def llava_next() -> Case:
    from transformers import LlavaNextConfig

    config = LlavaNextConfig(
        vision_config=CLIP, text_config=llama(), image_token_id=IMAGE, vision_feature_layer=-2,
        image_grid_pinpoints=[[32, 64], [64, 32], [64, 64]],
    )  # fmt: skip
    model = made("LlavaNextForConditionalGeneration", config)
    # A 32 x 64 image: the copy (16), and 4 rows of 8 with a line break each.
    return Case(
        model,
        lambda n: {"pixel_values": torch.randn(n, 3, 3, 32, 32), "image_sizes": torch.tensor([[32, 64]] * n)},
        16 + 4 * 9,
    )


@builder("internvl")
def internvl() -> Case:
    from transformers import InternVLConfig

    vision = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        image_size=[32, 32], patch_size=[4, 4],
    )  # fmt: skip
    text = {**llama(), "model_type": "qwen2"}
    config = InternVLConfig(vision_config=vision, text_config=text, image_token_id=IMAGE)
    return Case(
        made("InternVLForConditionalGeneration", config),
        lambda n: {"pixel_values": torch.randn(n, 3, 32, 32)}, 16, (4, 4),
    )  # fmt: skip


@builder("gemma3")
def gemma3() -> Case:
    from transformers import Gemma3Config

    text = dict(TEXT, head_dim=8, sliding_window=512, layer_types=["sliding_attention", "full_attention"])
    vision = {**SIGLIP, "image_size": 64}
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=16, image_token_id=IMAGE)
    return Case(
        made("Gemma3ForConditionalGeneration", config),
        lambda n: {"pixel_values": torch.randn(n, 3, 64, 64)}, 16, (4, 4),
        more=lambda ids: {"token_type_ids": (ids == IMAGE).long()},
    )  # fmt: skip


@builder("smolvlm")
def smolvlm() -> Case:
    return _connected("SmolVLM")


@builder("idefics3")
def idefics3() -> Case:
    return _connected("Idefics3")


def by_prompt(images: tuple[int, ...]) -> dict[str, Any]:
    """Images of each prompt, padded with black ones."""
    pixels = torch.randn(len(images), max(images), 3, 32, 32)
    for row, count in zip(pixels, images, strict=True):
        row[count:] = 0
    return {"pixel_values": pixels}


def _connected(name: str) -> Case:
    import transformers

    vision = {k: v for k, v in SIGLIP.items() if k != "model_type"} | {"patch_size": 4}
    config = getattr(transformers, f"{name}Config")(
        vision_config=vision, text_config=llama(), image_token_id=IMAGE, scale_factor=2, pad_token_id=0
    )
    return Case(made(f"{name}ForConditionalGeneration", config), by_prompt, 16, (4, 4), nested=True)


@builder("paligemma")
def paligemma() -> Case:
    from transformers import PaliGemmaConfig

    text = {"model_type": "gemma", **TEXT, "head_dim": 8}
    config = PaliGemmaConfig(
        vision_config=SIGLIP, text_config=text, image_token_id=IMAGE, projection_dim=32, hidden_size=32
    )
    return Case(
        made("PaliGemmaForConditionalGeneration", config),
        lambda n: {"pixel_values": torch.randn(n, 3, 32, 32)}, 16, (4, 4),
        more=lambda ids: {"token_type_ids": torch.zeros_like(ids)},  # all prefix; without it padding changes the mask
        suffix_type=1,
    )  # fmt: skip


def packed(n: int, shape: tuple[int, int, int] = (1, 8, 8), kind: str = "image", width: int = 96) -> dict[str, Any]:
    name = "pixel_values" if kind == "image" else "pixel_values_videos"
    rows = n * shape[0] * shape[1] * shape[2]
    return {name: torch.randn(rows, width), f"{kind}_grid_thw": torch.tensor([shape] * n)}


def types(ids: torch.Tensor) -> dict[str, Any]:
    return {"mm_token_type_ids": (ids == IMAGE).int() + 2 * (ids == VIDEO).int()}


SPECIAL = dict(image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END)


@builder("qwen2_vl")
def qwen2_vl() -> Case:
    from transformers import Qwen2VLConfig

    vision = dict(depth=2, embed_dim=32, hidden_size=32, num_heads=4, patch_size=4, mlp_ratio=2)
    config = Qwen2VLConfig(text_config=dict(TEXT, rope_parameters=MROPE), vision_config=vision, **SPECIAL)
    return Case(made("Qwen2VLForConditionalGeneration", config), packed, 16, (4, 4), more=types)


@builder("qwen2_5_vl")
def qwen2_5_vl() -> Case:
    from transformers import Qwen2_5_VLConfig

    vision = dict(
        depth=3, hidden_size=32, intermediate_size=48, num_heads=4, patch_size=4, out_hidden_size=32,
        window_size=16, fullatt_block_indexes=[1],
    )  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=dict(TEXT, rope_parameters=MROPE), vision_config=vision, **SPECIAL)
    return Case(made("Qwen2_5_VLForConditionalGeneration", config), packed, 16, (4, 4), more=types)


@builder("qwen3_vl")
def qwen3_vl() -> Case:
    from transformers import Qwen3VLConfig

    vision = dict(
        depth=3, hidden_size=32, intermediate_size=48, num_heads=4, patch_size=4, out_hidden_size=32,
        num_position_embeddings=64, deepstack_visual_indexes=[0, 1],
    )  # fmt: skip
    text = dict(TEXT, head_dim=8, rope_parameters={**MROPE, "mrope_interleaved": True})
    config = Qwen3VLConfig(text_config=text, vision_config=vision, **SPECIAL)
    return Case(made("Qwen3VLForConditionalGeneration", config), packed, 16, (4, 4), more=types)
