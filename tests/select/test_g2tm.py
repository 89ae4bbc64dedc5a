"""G2TM by its properties."""

import pytest
import torch

import tokengraph as tg
from tokengraph import connected_components
from tokengraph.select.parts.graphs.components import components
from tokengraph.testing import tiny_vit


def blocky(images, grid, channels=8, seed=0):
    """Tokens whose neighbours resemble each other."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(images, channels, -(-grid[0] // 3), -(-grid[1] // 3), generator=g)
    fine = coarse.repeat_interleave(3, 2).repeat_interleave(3, 3)[:, :, : grid[0], : grid[1]]
    x = fine.flatten(2).transpose(1, 2)
    return x + 0.5 * torch.randn(x.shape, generator=g)


def same(cluster):
    return cluster[:, None] == cluster


def by_search(edges, tokens):
    """Components by depth first search."""
    root, near = [-1] * tokens, [[] for _ in range(tokens)]
    for i, j in edges:
        near[i].append(j)
        near[j].append(i)
    for start in range(tokens):
        stack = [start] if root[start] < 0 else []
        while stack:
            i = stack.pop()
            if root[i] < 0:
                root[i] = start
                stack += near[i]
    return root


@pytest.mark.parametrize("seed", range(4))
def test_components_are_those_of_a_search(seed):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randint(60, (2, 70), generator=g)
    edge = torch.rand(3, 70, generator=g) < 0.6
    found = components((a, b), edge, 60).tolist()
    for ours, mine in zip(found, edge, strict=True):
        assert ours == by_search(list(zip(a[mine].tolist(), b[mine].tolist(), strict=True)), 60)


def test_a_snake_is_one_component():
    order = torch.randperm(200)
    assert components((order[1:], order[:-1]), torch.ones(1, 199, dtype=torch.bool), 200).unique().tolist() == [0]


@pytest.mark.parametrize("kind", ["signs", "ones"])
def test_a_cosine_of_exactly_tau_does_not_merge(vectors, kind):
    v = vectors("merging", "ties")
    assert connected_components(v[kind][None], (4, 6), 0.5).cluster.tolist() == v[f"g2tm_4x6_tau0.5_{kind}"].tolist()


def test_from_one_on_nothing_merges_and_below_minus_one_all():
    x = torch.full((2, 12, 8), 0.37)
    assert connected_components(x, (3, 4), 1.0).num_clusters == 24
    x = torch.randn(2, 12, 8)
    a = connected_components(x, (3, 4), -1.01)
    assert a.num_clusters == 2 and a.reduce(x.flatten(0, 1))[1].tolist() == [12, 12]


def test_clusters_nest_as_tau_falls():
    x = blocky(2, (9, 9))
    finer = None
    for tau in (0.95, 0.8, 0.6, 0.3):
        together = same(connected_components(x, (9, 9), tau).cluster)
        assert finer is None or (together | ~finer).all()
        finer = together


def test_a_transposed_or_flipped_grid_gives_transposed_or_flipped_clusters():
    x = blocky(1, (6, 7)).view(6, 7, 8)
    plain = connected_components(x.reshape(1, 42, 8), (6, 7), 0.8).cluster.view(6, 7)
    for turn, grid in (
        (lambda t: t.transpose(0, 1), (7, 6)),
        (lambda t: t.flip(0), (6, 7)),
        (lambda t: t.flip(1), (6, 7)),
    ):
        turned = connected_components(turn(x).reshape(1, 42, 8), grid, 0.8).cluster
        assert torch.equal(same(turned), same(turn(plain).reshape(-1)))


def test_the_budget_is_the_fewest_that_may_stay():
    x = blocky(3, (8, 8))
    free = connected_components(x, (8, 8), 0.6).cluster_ptr.diff().tolist()
    assert max(free) < 50
    a = connected_components(x, (8, 8), 0.6, [50, 1, 64])
    assert a.cluster_ptr.diff().tolist() == [50, free[1], 64]
    whole = connected_components(x[:1], (8, 8), 0.6).cluster
    assert (same(whole) | ~same(a.cluster[:64])).all()  # only heavier edges of the same components


def test_in_a_video_patches_touch_in_time():
    x = torch.nn.functional.one_hot(torch.arange(8)).float()
    x[4] = x[0]
    cluster = connected_components(x[None], (2, 2, 2), 0.5).cluster
    assert cluster.tolist() == [0, 1, 2, 3, 0, 4, 5, 6]


def test_nothing_is_written_into_the_input():
    x = blocky(2, (6, 6))
    before = x.clone()
    connected_components(x, (6, 6), 0.5)
    assert torch.equal(x, before)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"Expected a grid of N=12 patches .got 3 x 3"):
        connected_components(torch.ones(1, 12, 2), (3, 3), 0.5)
    with pytest.raises(ValueError, match="Expected data to be 'ade20k' or 'cityscapes' .got 'coco'"):
        tg.G2TM.published("coco")
    with pytest.raises(ValueError, match="act on the full grid only"):
        tg.attach(tiny_vit(), tg.G2TM(), 3)
    with pytest.raises(ValueError, match="Expected the full patch grid for G2TM .got 5 tokens"):
        tg.coarsen(tg.TokenGraph.from_tokens(torch.randn(1, 5, 4)), tg.G2TM(), 2)


def test_a_model_says_for_each_image_what_stayed():
    model, images = tiny_vit(), torch.randn(3, 3, 32, 32)
    with torch.no_grad(), tg.attach(model, tg.G2TM(0.1)) as handle:
        model(images)
        trace = handle.trace
        assert trace.counts_per_image(1) == [16] * 3
        assert len(set(trace.counts_per_image(2))) > 1 and max(trace.counts_per_image(2)) < 16
        assert trace.size(3).sum(dim=1).tolist() == [16.0] * 3
