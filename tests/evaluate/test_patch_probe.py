"""The linear probe on patches, for masks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tokengraph as tg
from tokengraph.evaluate.images import Arrays
from tokengraph.evaluate.patch_probe import fit, highest_class, sums
from tokengraph.testing import tiny_vit


def scenes(count, seed=0):
    """A bright square on a dark ground, and its mask."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((count, 32, 32), dtype=np.uint8)
    for mask in masks:
        y, x = rng.integers(0, 16, 2)
        mask[y : y + 16, x : x + 16] = 1
    images = (rng.integers(0, 60, (count, 32, 32, 3)) + 150 * masks[..., None]).astype(np.uint8)
    return Arrays(images, masks=masks, name="squares")


def test_fit_is_weighted_least_squares():
    patches, targets = torch.randn(3, 4, 2, 2), torch.randint(0, 3, (3, 8, 8))
    targets[0, :4, :6] = 255
    decode = fit([sums(patches[:1], targets[:1], 3), sums(patches[1:], targets[1:], 3)], l2=0.0)
    known = targets != 255
    hot = F.one_hot(targets.masked_fill(~known, 0), 3).permute(0, 3, 1, 2).double() * known[:, None]
    share = F.avg_pool2d(hot, 4).permute(0, 2, 3, 1).reshape(-1, 3)
    weight = share.sum(1, keepdim=True)
    rows = torch.cat([patches.double().permute(0, 2, 3, 1).reshape(-1, 4), torch.ones(12, 1).double()], dim=1)
    root, seen = weight.sqrt(), weight[:, 0] > 0
    by_hand = torch.linalg.lstsq((rows * root)[seen], (share / weight.clamp_min(1e-9) * root)[seen]).solution
    expected = (rows @ by_hand).reshape(3, 2, 2, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(decode(patches).double(), expected, rtol=0, atol=1e-4)


def test_highest_class_leaves_what_is_ignored_out():
    masks = [np.array([[0, 255]]), np.array([[3, 1]]), np.full((1, 2), 255)]
    assert highest_class(Arrays([None] * 3, masks=masks)) == 3
    assert highest_class(Arrays([None], masks=[None])) == 0


def test_evaluate_fits_a_probe_on_patches_by_both_protocols(quick, tmp_path):
    settings = ["tome:4", "resolution:24", "tome:{9: 0.5}"]
    given = {"probe": "linear", "train": scenes(12), "controls": False, "options": quick}
    report = tg.evaluate(tiny_vit(), settings, scenes(10, seed=1), out=tmp_path, **given)
    dense, tome, smaller, failed = report.rows
    assert dense.metrics["miou"] == dense.metrics["miou_refit"] > 0.6
    assert {"miou", "biou", "miou_refit", "biou_refit"} <= set(smaller.metrics) and "Expected layers" in failed.reason
    assert (
        smaller.metrics["miou_refit"] > 0.4
        and tome.differences["miou_refit"].low <= tome.differences["miou_refit"].value
    )
    assert "probe fitted again" in report.markdown()
    again = tg.evaluate(tiny_vit(), settings, scenes(10, seed=1), out=tmp_path, **given)
    assert again.rows[:3] == report.rows[:3]
    other = {**given, "options": replace(quick, l2=1.0)}
    with pytest.raises(ValueError, match="Expected a folder of the same run"):
        tg.evaluate(tiny_vit(), settings, scenes(10, seed=1), out=tmp_path, **other)


def test_evaluate_says_what_a_probe_on_patches_needs(quick):
    for given in ({"probe": "linear"}, {"probe": "knn", "train": scenes(2)}):
        with pytest.raises(ValueError, match="Expected probe='linear' and train images with masks"):
            tg.evaluate(tiny_vit(), [], scenes(2), options=quick, **given)
