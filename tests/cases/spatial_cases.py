"""The tiny hierarchical models of ``tests/spatial``: their third stage, its positions, images for them."""

import torch

FAMILIES = ("convnext", "convnext-conv", "convnext2", "convnext2-conv", "swin")  # of the fixture ``tiny``


def stage_of(model):
    return (model.stages if hasattr(model, "stages") else model.layers)[2]


def images(count=2, height=64, width=64):
    return torch.randn(count, 3, height, width)


def positions(model):
    """Of the third stage, for images of the usual size."""
    return 16 if hasattr(model, "stages") else 64
