"""Architectures that every law of ``attach`` is tested over: tiny, with random weights, under the names users know.

Print the README's list: ``python tests/cases/architectures.py``.
"""

from functools import partial

import pytest
import torch
from dense_cases import SIZES, dense, spread
from multihead_cases import KINDS
from needs import library

from tokengraph.testing import ModelCase

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

TIMM = """
vit_base_patch16_224 vit_base_patch16_224_miil vit_small_patch16_36x1_224 flexivit_small deit_small_patch16_224
deit_base_distilled_patch16_224 deit3_small_patch16_224 vit_base_patch16_clip_224 vit_base_patch16_siglip_224
vit_base_patch16_siglip_gap_224 vit_medium_patch16_gap_240 vit_betwixt_patch16_reg4_gap_256 vit_small_patch14_dinov2
vit_small_patch14_reg4_dinov2 eva_giant_patch14_224 eva02_tiny_patch14_224 eva02_base_patch16_clip_224
vit_base_patch16_rope_224 vit_small_patch16_rope_mixed_ape_224 vit_medium_patch16_rope_reg1_gap_256
vit_small_patch16_dinov3 vit_pe_core_tiny_patch16_384 beit_base_patch16_224 beitv2_base_patch16_224
naflexvit_base_patch16_gap
""".split()
TRANSFORMERS = {
    "ViTModel": {},
    "ViTForImageClassification": {"num_labels": 5},
    "DeiTModel": {},
    "DeiTForImageClassificationWithTeacher": {"num_labels": 5},
    "Dinov2Model": {},
    "Dinov2ForImageClassification": {"num_labels": 5},
    "Dinov2Backbone": {"out_features": ["stage1", "stage3"]},
    "Dinov2WithRegistersModel": {"num_register_tokens": 3},
    "DINOv3ViTModel": {"num_register_tokens": 2},
    "DINOv3ViTBackbone": {"num_register_tokens": 2, "out_features": ["stage1", "stage3"]},
    "CLIPVisionModel": {},
    "CLIPVisionModelWithProjection": {},
    "SiglipVisionModel": {},
    "ViTMAEModel": {"mask_ratio": 0.0},
    "ViTMSNModel": {},
    "IJepaModel": {},
    "BeitModel": {"use_relative_position_bias": True},
    "BeitForImageClassification": {"use_shared_relative_position_bias": True, "num_labels": 5},
    "Data2VecVisionModel": {"use_relative_position_bias": True},
}
ENDINGS = ("Model", "ForImageClassification", "Backbone", "ModelWithProjection", "ForImageClassificationWithTeacher")


def from_timm(name):
    timm = library("timm")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
    if name.startswith("naflex"):
        sizes = {key: value for key, value in sizes.items() if key != "img_size"}
    return spread(lambda: timm.create_model(name, pretrained=False, **sizes))


def from_transformers(name, **options):
    transformers = library("transformers")
    stem = next(name.removesuffix(e) for e in sorted(ENDINGS, key=len, reverse=True) if name.endswith(e))
    config = getattr(transformers, f"{stem}Config")(**SIZES | options)
    return spread(lambda: getattr(transformers, name)(config))


def from_torchvision(**options):
    torchvision = library("torchvision")
    return spread(lambda: torchvision.models.VisionTransformer(32, 8, 3, 4, 32, 64, num_classes=5, **options))


def from_open_clip():
    library("torchvision")  # first: open_clip needs it, beside a CPU-only torch
    transformer = pytest.importorskip("open_clip.transformer")
    return spread(lambda: transformer.VisionTransformer(32, 8, 32, 3, 4, 2.0, output_dim=16))


def from_siglip2():
    transformers = library("transformers")
    sizes = {key: value for key, value in SIZES.items() if key != "image_size"} | {"patch_size": 4, "num_patches": 16}
    return spread(lambda: transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**sizes)))


def two_images_in_patches():
    shapes = torch.tensor([[4, 4], [4, 4]])
    pixels = torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 16, dtype=torch.long)
    return {"pixel_values": pixels, "pixel_attention_mask": mask, "spatial_shapes": shapes}


def cases():
    """``{(library, name): ModelCase}``."""
    found = {("timm", name): ModelCase(partial(from_timm, name), (IMAGES,)) for name in TIMM}
    for name, options in TRANSFORMERS.items():
        make = partial(from_transformers, name, **options)
        found["transformers", name] = ModelCase(make, (IMAGES,), alone="MAE" not in name)  # it shuffles patches
    found["transformers", "Siglip2VisionModel"] = ModelCase(from_siglip2, (), two_images_in_patches(), one_graph=False)
    found |= dense()
    found["torchvision", "VisionTransformer (vit_b_16, ...)"] = ModelCase(from_torchvision, (IMAGES,))
    found["open_clip", "VisionTransformer"] = ModelCase(from_open_clip, (IMAGES,))
    make, adapter = KINDS["own"]
    found["torch", "nn.TransformerEncoder, by adapter="] = ModelCase(partial(spread, make), (IMAGES,), adapter=adapter)
    return found


def listing():
    """The README's list."""
    known, lines = cases(), []
    for origin in dict.fromkeys(origin for origin, _ in known):
        names = [f"`{name}`" for where, name in known if where == origin]
        lines.append(f"* {origin}: {', '.join(names)}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(listing())
