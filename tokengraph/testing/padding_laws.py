"""The laws of batches with different numbers of tokens per image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from tokengraph.edges.grid import grid_positions
from tokengraph.maps.counts import with_counts
from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.select.one_image import select_alone
from tokengraph.testing.choice_laws import GRID, features
from tokengraph.testing.map_laws import dense
from tokengraph.testing.tokens import make_tokens

GRIDS = ((6, 8), (5, 6), (2, 9))  # three images in one batch, padded to 48 tokens
KEEP = [24, 15, 9]  # half of each, a budget that every strategy can reach, also as a grid


def by_image(select: Select) -> bool:
    """True if a ragged batch reaches the strategy image by image."""
    return select.alone or select.needs_grid


def takes_padding(select: Select) -> None:
    """The map of an image in a padded batch equals its map alone, also if padding has large random values.

    Strategies that need a grid, or take one image at a time, get such a batch image by image, as in a model.
    """
    counts = [h * w for h, w in GRIDS]
    x, mask = features(3), torch.arange(48) < torch.tensor(counts)[:, None]
    x = torch.where(mask[..., None], x, 50 * features(3, seed=9))  # padding with values far larger than the tokens
    tokens = make_tokens(x, None, mask=mask)
    pos = [F.pad(grid_positions(grid), (0, 0, 0, 48 - h * w)) for grid in GRIDS for h, w in [grid]]
    tokens.locate = lambda: torch.stack([p.view(48, 2) for p in pos])
    a = select_alone(select, tokens, KEEP, GRIDS, True) if by_image(select) else select(tokens, KEEP)
    assert a.num_tokens == sum(counts), f"a map over {a.num_tokens} of {sum(counts)} tokens: padding is in it"
    start_token = start_cluster = 0
    whole = dense(a)
    made = []
    for b, (grid, count, keep) in enumerate(zip(GRIDS, counts, KEEP, strict=True)):
        one = make_tokens(x[b : b + 1, :count], grid if by_image(select) else None)
        alone = select(one, keep)
        made.append(alone.num_clusters)
        rows = whole[start_token : start_token + count]
        mine = rows[:, start_cluster : start_cluster + alone.num_clusters]
        assert mine.sum() == rows.sum(), f"image {b}: a token in another image's cluster"
        _same(alone, mine, f"image {b}: padding changed its map")
        start_token, start_cluster = start_token + count, start_cluster + alone.num_clusters
    assert start_cluster == a.num_clusters, f"{a.num_clusters} clusters, and {made} of the images alone"
    found = with_counts(a, 3, mask).counts
    assert found == tuple(made), f"Expected counts={tuple(made)} (got {found})"


def ragged_equals_fixed(select: Select) -> None:
    """A mask that is True everywhere, or a call for each image, gives the map of the batch without a mask."""
    x = features(2)
    fixed = select(make_tokens(x, GRID if by_image(select) else None), 30)
    mask = torch.ones(2, x.size(1), dtype=torch.bool)
    if by_image(select):
        ragged = select_alone(select, make_tokens(x, GRID), [30, 30], (GRID, GRID), True)
    else:
        ragged = select(make_tokens(x, None, mask=mask), [30, 30])
    _same(ragged, dense(fixed), "a full mask changed the map")
    assert select.ragged or ragged.counts is None or len(set(ragged.counts)) == 1


def _same(a: Assignment | SoftAssignment, wanted: Tensor, message: str) -> None:
    found = dense(a)
    assert found.shape == wanted.shape, f"{message}: {list(found.shape)}, {list(wanted.shape)}"
    if isinstance(a, Assignment):
        assert torch.equal(found, wanted), message
    else:
        assert_close(found, wanted, rtol=1e-4, atol=1e-5, msg=lambda m: f"{message}. {m}")
