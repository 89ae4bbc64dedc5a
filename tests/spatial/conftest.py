"""Tiny hierarchical models whose third stage has 4 blocks, with weights that all matter."""

import pytest
import torch
from needs import library


def tiny_convnext(**options):
    sizes = {"depths": (1, 1, 4, 1), "dims": (8, 8, 16, 16), "num_classes": 5, "ls_init_value": 0.5}
    return _spread(library("timm").models.ConvNeXt(**sizes | options))


def tiny_convnext_conv(**options):
    return tiny_convnext(conv_mlp=True, **options)


def tiny_convnext2(**options):
    return tiny_convnext(use_grn=True, ls_init_value=None, **options)


def tiny_convnext2_conv(**options):
    return tiny_convnext(use_grn=True, conv_mlp=True, **options)


def tiny_swin(**options):
    sizes = {"img_size": 64, "patch_size": 2, "embed_dim": 12, "depths": (1, 1, 4, 1), "num_heads": (1, 2, 3, 3)}
    rest = {"window_size": 4, "num_classes": 5, "drop_path_rate": 0.0}
    return _spread(library("timm").models.SwinTransformer(**sizes | rest | options))


def _spread(model):
    for parameter in model.parameters():
        if parameter.dim() <= 1:
            torch.nn.init.normal_(parameter, std=0.5)
        else:
            torch.nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5)
    return model.eval()


def _lively(handle):
    """Weights of predictors and fast paths that matter too."""
    for parts in handle.select.fast:
        for part in parts.values():
            for parameter in [part] if isinstance(part, torch.nn.Parameter) else part.parameters():
                torch.nn.init.normal_(parameter, std=0.5)
    for parameter in handle.select.predictors.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return handle


TINY = {
    "convnext": tiny_convnext,
    "convnext-conv": tiny_convnext_conv,
    "convnext2": tiny_convnext2,
    "convnext2-conv": tiny_convnext2_conv,
    "swin": tiny_swin,
}


@pytest.fixture(params=TINY)
def tiny(request):
    """Makes a tiny model of each family."""
    return TINY[request.param]


@pytest.fixture
def lively():
    """Gives an attachment weights that matter, in predictors and fast paths."""
    return _lively
