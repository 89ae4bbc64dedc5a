"""AiluRus on grids (T, H, W), against a loop over tokens written from its formulae."""

import itertools
import math

import pytest
import torch

from tokengraph.io.onnx import _adopt_orphans
from tokengraph.select.peaks.ailurus import ailurus
from tokengraph.select.peaks.orphans import EPS, adopt_orphans


def clusters_by_loop(x, keep, grid, *, k, lam, alpha):
    """Anchor of each token, in float64, every rank by sorting all patches."""
    x, at = x.double(), list(itertools.product(*map(range, grid)))
    count = len(at)
    rank, sigma = {}, torch.empty(count, count, dtype=torch.float64)
    for i in range(count):
        key = [(sum((a - b) ** 2 for a, b in zip(at[i], at[j], strict=True)), j) for j in range(count)]
        rank[i] = {j: r for r, (_, j) in enumerate(sorted(key))}
        for j in range(count):
            distance = (x[i] - x[j]).norm() / math.sqrt(x.size(1))
            sigma[i, j] = (alpha + (1 - alpha) * rank[i][j] / lam) * (distance + EPS)
    near = [[j for j in range(count) if 0 < rank[i][j] <= lam] for i in range(count)]
    density = [-sigma[i, near[i]].sort().values[:k].square().mean().item() for i in range(count)]
    farthest = max(sigma[i, near[i]].max().item() for i in range(count))
    score = []
    for i in range(count):
        denser = [sigma[i, j].item() for j in near[i] if density[j] > density[i]]
        score.append(density[i] + math.log(min(denser, default=farthest)))
    anchors = sorted(sorted(range(count), key=lambda i: -score[i])[:keep])
    out = []
    for i in range(count):
        seen = [a for a in anchors if a in near[i]] or anchors
        out.append(i if i in anchors else min(seen, key=lambda a: (sigma[i, a].item(), rank[i][a])))
    return [anchors.index(a) for a in out]


@pytest.mark.parametrize(
    "grid, keep, lam", [((4, 3, 5), 9, 12), ((3, 6, 4), 2, 6), ((5, 2, 2), 6, 50), ((1, 5, 6), 5, 8)]
)
def test_ailurus_of_a_video_equals_a_loop_over_tokens(grid, keep, lam):
    x = torch.randn(2, math.prod(grid), 6, generator=torch.Generator().manual_seed(0))
    a = ailurus(x, keep, grid, k=3, lam=lam, alpha=0.7)
    for b, made in enumerate((a.cluster.view(2, -1) - torch.tensor([[0], [keep]])).tolist()):
        assert made == clusters_by_loop(x[b], keep, grid, k=3, lam=lam, alpha=0.7)


def test_ailurus_of_one_frame_is_that_of_the_image():
    x = torch.randn(2, 48, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(ailurus(x, 7, (1, 6, 8), lam=10).cluster, ailurus(x, 7, (6, 8), lam=10).cluster)


def test_windows_of_a_video_reach_into_the_next_frame_and_not_over_its_border():
    x = torch.zeros(1, 2 * 4 * 4, 2)
    x[0, 12:20] = 5.0  # last row of one frame, first of the next: neighbours only if frames are laid below one another
    x += 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    graph = ailurus(x, 4, (2, 4, 4), lam=8, k=2)
    assert graph.cluster[12:16].unique().tolist() != graph.cluster[16:20].unique().tolist()


def test_orphans_of_a_video_export_as_they_run():
    g = torch.Generator().manual_seed(3)
    x, orphan = torch.randn(2, 24, 5, generator=g), torch.rand(2, 24, generator=g) > 0.5
    anchors = torch.stack([torch.randperm(24, generator=g)[:4].sort().values for _ in range(2)])
    arguments = (torch.zeros(2, 24, dtype=torch.long), orphan, x, anchors, 3, 4, 3, 0.2, 2)
    assert torch.equal(_adopt_orphans(*arguments), adopt_orphans(*arguments))
    plane = adopt_orphans(*arguments[:4], 6, 4, 3, 0.2)
    assert not torch.equal(adopt_orphans(*arguments), plane)


def test_ailurus_of_a_video_compiles_in_one_graph():
    x = torch.randn(2, 60, 6, generator=torch.Generator().manual_seed(4))

    def step(x):
        return ailurus(x, 9, (4, 3, 5), lam=12).cluster

    assert torch.equal(torch.compile(step, fullgraph=True, backend="eager")(x), step(x))
