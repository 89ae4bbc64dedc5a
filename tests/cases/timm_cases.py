"""Kinds of timm's VisionTransformer, Eva and NaFlexVit, tiny, and batches of patches of images of several shapes."""

import inspect

import pytest
import torch
from needs import library
from torch import nn

from tokengraph.testing import tiny_vit

VIT = {
    "vit": {},
    "deit3_layer_scale": {"init_values": 0.5, "no_embed_class": True},
    "clip_pre_norm": {"pre_norm": True, "norm_layer": nn.LayerNorm},
    "siglip_map_pool": {"class_token": False, "global_pool": "map"},
    "gap": {"class_token": False, "global_pool": "avg", "fc_norm": True},
    "dinov2": {"init_values": 0.5, "img_size": 28, "patch_size": 7},
    "dinov2_registers": {"init_values": 0.5, "reg_tokens": 4, "no_embed_class": True},
    "qk_norm": {"qk_norm": True},
    "avg_with_class_token": {"global_pool": "avg"},
    "drop_path": {"drop_path_rate": 0.2, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1},
    "rectangle": {"img_size": (32, 48)},
}
EVA = {
    "eva": {"init_values": 0.1},
    "eva02": {"use_rot_pos_emb": True, "swiglu_mlp": True, "scale_mlp": True, "qkv_fused": False},
    "rope": {"use_rot_pos_emb": True, "attn_type": "rope", "num_reg_tokens": 2, "qk_norm": True},
    "rope_mixed": {"use_rot_pos_emb": True, "rope_type": "mixed", "attn_type": "rope"},
    "dinov3": {
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "use_abs_pos_emb": False,
        "num_reg_tokens": 4,
        "init_values": 1e-1,
    },
    "average": {"use_rot_pos_emb": True, "class_token": False, "global_pool": "avg"},
    "inner_norm": {"use_rot_pos_emb": True, "scale_attn_inner": True, "drop_path_rate": 0.2},
}
NAFLEX = {
    "class": {"class_token": True, "reg_tokens": 1, "global_pool": "token"},
    "avg": {"class_token": False, "global_pool": "avg"},
    "avgmax": {"class_token": False, "reg_tokens": 2, "global_pool": "avgmax"},
    "map": {"class_token": False, "global_pool": "map"},
}
SHAPES = [(4, 4), (2, 5), (3, 3), (1, 7)]


def make_vit(kind):
    """The distilled DeiT is a kind, too."""
    timm = library("timm")
    if kind != "deit_distilled":
        return tiny_vit(**VIT[kind])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.models.deit.VisionTransformerDistilled(
            img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4
        )
    return model.eval()


def make_eva(kind, **more):
    timm = library("timm")
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
    known = inspect.signature(timm.models.eva.Eva).parameters
    if missing := [name for name in EVA[kind] if name not in known]:
        pytest.skip(f"this timm makes no Eva with {missing[0]}")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.models.eva.Eva(**sizes | EVA[kind] | more).eval()
        torch.nn.init.normal_(model.head.weight)
    return model


def make_naflex(kind="class", train=False, **options):
    timm = library("timm")
    naflexvit = timm.models.naflexvit
    if not hasattr(naflexvit.NaFlexVit, "_forward_embeds"):
        pytest.skip("an older NaFlexVit, which is refused")
    sizes = {"embed_dim": 32, "depth": 3, "num_heads": 4, "patch_size": 4, "pos_embed_grid_size": (4, 4)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = naflexvit.NaFlexVit(num_classes=5, img_size=16, **sizes, **(NAFLEX[kind] | options))
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return model.train(train)


def patches_of(shapes=SHAPES, width=20):
    """Patches of images with these shapes; image b is the same in every batch, padding is random."""
    patches = 100 * torch.randn(len(shapes), width, 48)
    coord = torch.zeros(len(shapes), width, 2, dtype=torch.long)
    valid = torch.zeros(len(shapes), width, dtype=torch.bool)
    for b, (h, w) in enumerate(shapes):
        patches[b, : h * w] = torch.randn(h * w, 48, generator=torch.Generator().manual_seed(1 + 10 * h + w))
        coord[b, : h * w] = torch.cartesian_prod(torch.arange(h), torch.arange(w))
        valid[b, : h * w] = True
    return {"patches": patches, "patch_coord": coord, "patch_valid": valid}
