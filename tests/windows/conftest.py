"""Tiny models with attention windows, whose weights all matter."""

import pytest
import torch
from needs import library


def tiny_sam(**options):
    sizes = {"img_size": 80, "patch_size": 8, "embed_dim": 24, "depth": 6, "num_heads": 3, "window_size": 4}
    rest = {"global_attn_indexes": (2, 5), "use_rel_pos": True, "neck_chans": 8, "num_classes": 5}
    return _spread(library("timm").models.VisionTransformerSAM(**sizes | rest | options))


def tiny_swin(**options):
    sizes = {"img_size": 64, "patch_size": 2, "embed_dim": 12, "depths": (1, 1, 4, 1), "num_heads": (1, 2, 3, 3)}
    rest = {"window_size": 4, "num_classes": 5, "drop_path_rate": 0.0}
    return _spread(library("timm").models.SwinTransformer(**sizes | rest | options))


def tiny_swin2(**options):
    sizes = {"img_size": 64, "patch_size": 2, "embed_dim": 12, "depths": (1, 1, 4, 1), "num_heads": (1, 2, 3, 3)}
    rest = {"window_size": 4, "num_classes": 5, "drop_path_rate": 0.0}
    return _spread(library("timm").models.SwinTransformerV2(**sizes | rest | options))


def _spread(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


@pytest.fixture
def sam():
    """Makes a tiny SAM-style ViT: a map of 10 x 10 in windows of 4 x 4, two global blocks."""
    return tiny_sam


@pytest.fixture
def swin():
    """Makes a tiny Swin, whose third stage has 4 blocks on 8 x 8 positions in windows of 4 x 4."""
    return tiny_swin


TINY = {"sam": tiny_sam, "swin": tiny_swin, "swin2": tiny_swin2}


@pytest.fixture(params=TINY)
def tiny(request):
    """Makes a tiny model of each family."""
    return TINY[request.param]


@pytest.fixture
def images():
    """Makes images that suit a model."""

    def make(model, count=2):
        side = 80 if hasattr(model, "neck") else 64
        return torch.randn(count, 3, side, side)

    return make
