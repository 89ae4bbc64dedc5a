"""Pure functions for servers."""

import pytest
import torch

from tokengraph import vlm


def test_retained_count_is_known_before_features():
    assert [vlm.retained_count(n, 0.25) for n in (1, 3, 576)] == [1, 1, 144]
    assert [vlm.retained_count(n, 64) for n in (0, 9, 576)] == [0, 9, 64]
    with pytest.raises(ValueError, match="share in"):
        vlm.retained_count(576, 1.25)


@pytest.mark.parametrize("select", ["dpc-knn", "tome", "dpp", "dart", "farthest-points", "random", "atc"])
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("keep", [0.3, 7, 1.0])
def test_retention_mask_keeps_exactly_the_retained_count_of_each_image(select, across, keep):
    grids = torch.tensor([[1, 8, 8], [3, 8, 4], [1, 4, 4]])
    embeds = torch.randn(16 + 24 + 4, 8, generator=torch.Generator().manual_seed(0))
    mask = vlm.retention_mask(embeds, grids, 2, keep, select=select, across=across)
    counts = vlm.retained_counts(grids, 2, keep, across=across)
    assert [int(part.sum()) for part in mask.split([16, 24, 4])] == counts
    assert vlm.retained_positions(mask, grids, 2).shape == (sum(counts), 3)
    alone = vlm.retention_mask(embeds[16:40], grids[1:2], 2, keep, select=select, across=across)
    assert torch.equal(alone, mask[16:40])


def test_retain_merges_rows_into_the_places_of_the_mask():
    embeds = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [0.0, 6.0]])
    rows, mask = vlm.retain(embeds, [(1, 4, 4)], 2, 2, select="farthest-points")
    assert rows.shape == (2, 2) and int(mask.sum()) == 2
    assert rows.sum(dim=0).tolist() == [2.0, 5.5]


def test_retention_mask_refuses_shapes_and_strategies_that_keep_no_fixed_number():
    embeds = torch.randn(16, 4)
    with pytest.raises(ValueError, match=r"Expected embeds of shape \[64, C\]"):
        vlm.retention_mask(embeds, [(1, 16, 16)], 2, 0.5)
    with pytest.raises(ValueError, match="sides divisible by merge_size=2"):
        vlm.retention_mask(embeds, [(1, 7, 8)], 2, 0.5)
    with pytest.raises(ValueError, match="Expected a strategy that keeps"):
        vlm.retention_mask(embeds, [(1, 8, 8)], 2, 5, select="lower-resolution")
