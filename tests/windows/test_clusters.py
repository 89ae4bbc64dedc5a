"""Expedite in windows: every window is clustered as if it were an image."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tokengraph.select.cubist_merge import CubistMerge, cubist_merge
from tokengraph.select.expedite.expedite import Expedite, expedite
from tokengraph.windows import cluster_windows
from tokengraph.windows.grid import split, stitch

SHARED = Path(__file__).parents[3] / "shared" / "reference" / "expedite"  # files too large for the repository
RELEASED = {"normalize": "l2", "ties": "released", "empty": "zero"}


def test_windows_are_clustered_as_images_are():
    x = torch.randn(2, 8, 12, 6)
    got = cluster_windows(x, (4, 4), (3, 3), Expedite(inv_temperature=0.5))
    windows, cut = split(x, (4, 4))
    alone = expedite(windows, (4, 4), (3, 3), inv_temperature=0.5)
    assert torch.equal(got.map, stitch(alone.centroids.view(12, 9, 6), cut, window=(3, 3)))
    assert got.grid == (6, 9) and got.map.shape == (2, 6, 9, 6)
    y = torch.randn(12 * 9, 5)
    wanted = stitch(alone.lift(y).view(12, 16, 5), cut)
    assert_close(got.restore(stitch(y.view(12, 9, 5), cut, window=(3, 3))), wanted)


def test_as_many_clusters_as_tokens_without_iterations_are_the_tokens():
    x = torch.randn(2, 4, 8, 6)
    got = cluster_windows(x, (4, 4), (4, 4), Expedite(iterations=0, mode="hard"))
    assert_close(got.map, x)
    assert torch.equal(got.restore(x), x)


@pytest.mark.parametrize("padding", ["tokens", "ignore"])
def test_padding_is_cropped(padding):
    x = torch.randn(1, 5, 7, 6)
    got = cluster_windows(x, (4, 4), (2, 2), Expedite(), padding=padding)
    assert got.grid == (4, 4) and got.restore(got.map).shape == x.shape


def test_ignored_padding_feeds_no_cluster():
    # one window of which the real part is constant: clusters are that constant, unless padding drags them to zero
    x = torch.full((1, 2, 3, 1), 5.0)
    ignored, counted = (
        cluster_windows(x, (4, 4), (2, 2), Expedite(inv_temperature=1e-3), padding=p) for p in ("ignore", "tokens")
    )
    assert_close(ignored.map, torch.full((1, 2, 2, 1), 5.0))
    assert counted.map.min() < 4


def test_windows_are_merged_to_strict_grids_as_images_are():
    x = torch.randn(2, 8, 12, 6)
    got = cluster_windows(x, (4, 4), (3, 2), CubistMerge())
    windows, cut = split(x, (4, 4))
    alone = cubist_merge(windows, (4, 4), (3, 2))
    rows, _ = alone.reduce(windows.flatten(0, 1), reduce="absmax")
    assert torch.equal(got.map, stitch(rows.view(12, 6, 6), cut, window=(3, 2)))
    assert got.grid == (6, 6) and got.map.shape == (2, 6, 6, 6)
    y = torch.randn(12 * 6, 5)
    assert torch.equal(
        got.restore(stitch(y.view(12, 6, 5), cut, window=(3, 2))), stitch(alone.lift(y).view(12, 16, 5), cut)
    )


def test_equal_neighbours_merge_and_come_back_unchanged():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).repeat_interleave(2, 0).repeat_interleave(2, 1).view(1, 4, 4, 1)
    x = torch.cat([x, 5 - x], dim=3)
    got = cluster_windows(x, (4, 4), (2, 2), CubistMerge())
    assert got.map[..., 0].tolist() == [[[1, 2], [3, 4]]] and torch.equal(got.restore(got.map), x)


def test_means_of_merged_windows_leave_ignored_padding_out():
    # one window of 1 x 2 of which the second token is padding
    x = torch.full((1, 1, 1, 1), 6.0)
    ignored, counted = (
        cluster_windows(x, (1, 2), (1, 1), CubistMerge(reduce="mean"), padding=p).map.item()
        for p in ("ignore", "tokens")
    )
    assert (ignored, counted) == (6, 3)


@pytest.mark.parametrize("select", [Expedite(), CubistMerge(reduce="mean")], ids=["expedite", "cubist-merge"])
def test_gradients_reach_the_map_and_the_clusters(select):
    x = torch.randn(1, 4, 4, 3, requires_grad=True)
    got = cluster_windows(x, (4, 4), (2, 2), select)
    got.restore(got.map * 2).sum().backward()
    assert (x.grad != 0).all()


def test_the_released_windows_of_swin_are_reproduced():
    path = SHARED / "op07_swin_win12_to_8.npz"
    if not path.exists():
        pytest.skip(
            "op07_swin_win12_to_8.npz is not kept in the repository, and there is no shared/reference beside it"
        )
    with np.load(path, allow_pickle=False) as file:
        case = {name: torch.from_numpy(file[name]) for name in file.files if file[name].dtype.kind in "fiu"}
    # four windows of one map, 24 x 24
    windows = case["x"].flatten(2).transpose(1, 2)
    _, cut = split(torch.zeros(1, 24, 24, 1), (12, 12))
    how = Expedite(
        iterations=5,
        inv_temperature=float(case["inv_temperature"]),
        window=int(case["window_size"]),
        **RELEASED,
    )
    got = cluster_windows(stitch(windows, cut), (12, 12), (8, 8), how)
    assert_close(split(got.map, (8, 8))[0], case["centres_final"], atol=1e-5, rtol=0)
