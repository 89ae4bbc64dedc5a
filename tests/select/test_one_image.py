import pytest
import torch
from torch.testing import assert_close

import tokengraph as tg
from tokengraph.attention.stats import AttentionStats
from tokengraph.select.one_image import select_alone, tokens_alone
from tokengraph.select.tokens import Tokens

GRIDS = [(2, 3), (2, 2)]


@pytest.fixture
def tokens():
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    return Tokens(x, mask=mask, full=False)


@pytest.mark.parametrize("select", [tg.AiluRus(lam=4), tg.Expedite(), tg.TokenMigration(), tg.GTP(score="random")])
def test_each_image_gets_the_map_that_it_gets_alone(select, tokens):
    made = select_alone(select, tokens, [3, 2], GRIDS, True)
    assert made.num_tokens == 10 and made.num_clusters == 5
    flat = tokens.x[tokens.mask]
    pooled = made.reduce(flat)[0].split([3, 2])
    for b, (keep, grid) in enumerate(zip((3, 2), GRIDS, strict=True)):
        own = tokens.x[b : b + 1, : grid[0] * grid[1]]
        alone = select(Tokens(own, grid=grid), keep)
        assert_close(pooled[b], alone.reduce(own[0])[0])


def test_one_budget_is_clamped_to_each_image(tokens):
    made = select_alone(tg.AiluRus(lam=4), tokens, 5, GRIDS, True)
    assert made.counts == (5, 4)


def test_statistics_are_those_of_the_image(tokens):
    q, k = torch.randn(2, 2, 2, 7, 4, generator=torch.Generator().manual_seed(1)).unbind()
    bias = torch.zeros(2, 1, 1, 7)
    bias[1, ..., 5:] = -torch.inf
    tokens.attention = AttentionStats(lambda: (q, k), 0.5, 1, bias)
    tokens.num_prefix = 1
    second = tokens_alone(tokens, GRIDS, True)[1]
    own = AttentionStats(lambda: (q[1:, :, :5], k[1:, :, :5]), 0.5, 1)
    assert_close(second.attention.column_sums(), own.column_sums())
    assert_close(second.attention.class_row(), own.class_row())
    assert_close(second.keys, own.keys())
    assert second.grid == (2, 2) and second.full and second.mask is None
    whole = AttentionStats.from_map(tokens.attention.rows(0, 7), 1)
    tokens.attention = whole
    assert_close(tokens_alone(tokens, GRIDS, True)[1].attention.column_sums(), own.column_sums())


def test_memory_is_the_images_own(tokens):
    tokens.memory = ["first", "second"]
    assert [t.memory for t in tokens_alone(tokens, GRIDS, True)] == ["first", "second"]
