"""The laws of one choice: its budget, mass and numerics. Each raises ``AssertionError`` if it is broken."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close

from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.testing.tokens import corner_cases, make_tokens

GRID = (6, 8)


def features(images: int = 3, channels: int = 16, seed: int = 0) -> Tensor:
    """Returns random tokens of a full grid, ``[B, 48, C]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, GRID[0] * GRID[1], channels, generator=generator)


def _fields(assignment: Assignment | SoftAssignment) -> list[Tensor]:
    hard = isinstance(assignment, Assignment)
    return [assignment.cluster] if hard else [assignment.token, assignment.cluster, assignment.weight]


def budgets(select: Select, tokens: int) -> list[int]:
    """Returns budgets below ``tokens`` that the strategy can reach."""
    found = {1, 2, tokens // 4, tokens // 2 + 1, tokens - 3, tokens - 1}
    return sorted(k for k in found if k >= select.fewest(tokens))


def used(a: Assignment | SoftAssignment) -> tuple[Tensor, Tensor]:
    """Returns token and cluster of each edge."""
    if isinstance(a, SoftAssignment):
        return a.token, a.cluster
    used = a.cluster < a.num_clusters
    return torch.arange(a.num_tokens)[used], a.cluster[used]


def clusters_of_images(select: Select, a: Assignment | SoftAssignment, asked: int, grid: tuple[int, int]) -> list[int]:
    """Checks the number of clusters of each image against the budget, and returns it.

    It is ``select.makes(asked)``; where a threshold decides (``select.ragged``), no less than that.
    """
    assert a.ptr is not None and a.cluster_ptr is not None, "a map without ptr or cluster_ptr"
    tokens, each = a.ptr.diff().tolist(), a.cluster_ptr.diff().tolist()
    for n, k in zip(tokens, each, strict=True):
        made = select.makes(asked, n, grid)
        fits = made <= k <= n if select.ragged else k == made
        assert fits, f"keep={asked} gave {k} clusters of {n} tokens, not {made}"
    assert a.num_clusters == sum(each) and a.num_tokens == sum(tokens)
    return each


def keeps_the_budget(select: Select) -> None:
    """Each image gets exactly ``select.makes(keep)`` clusters, none of them empty, with consecutive numbers.

    Where a threshold decides (``select.ragged``) it gets at least as many.
    """
    x = features()
    tokens = x.size(1)
    for asked in budgets(select, tokens):
        a = select(make_tokens(x, GRID), asked)
        kind = type(a).__name__
        assert isinstance(a, Assignment | SoftAssignment), f"Expected an Assignment or a SoftAssignment (got {kind})."
        keep = select.makes(asked, tokens, GRID)
        assert 1 <= keep <= asked, f"keep={asked} would make {keep} clusters"
        each = clusters_of_images(select, a, asked, GRID)
        assert len(each) == 3 and a.num_tokens == 3 * tokens
        token, cluster = used(a)
        empty = a.num_clusters - cluster.unique().numel()
        assert not empty, f"keep={keep}: {empty} empty clusters"
        image = torch.repeat_interleave(torch.arange(3), torch.tensor(each))
        assert torch.equal(token // tokens, image[cluster]), "a token in another image's cluster"


def keeps_all_when_asked(select: Select) -> None:
    """With ``keep >= N`` every token is its own cluster, in order."""
    x = features()
    for keep in (x.size(1), x.size(1) + 5):
        a = select(make_tokens(x, GRID), keep)
        pooled, size = a.reduce(x.flatten(0, 1))
        assert torch.equal(size, torch.ones_like(size)), f"keep={keep} of {x.size(1)} tokens merged or dropped some"
        assert torch.equal(pooled, x.flatten(0, 1)), (
            f"keep={keep} of {x.size(1)} tokens changed their order. Number clusters by a token of theirs (the first, "
            "or the center), not by when they were chosen"
        )
        assert torch.equal(a.lift(pooled), pooled), f"keep={keep}: lift did not restore the tokens"


def refuses_an_empty_budget(select: Select) -> None:
    """``keep = 0`` raises."""
    try:
        select(make_tokens(features(), GRID), 0)
    except ValueError as error:
        assert str(error), "the error says nothing"
    else:
        raise AssertionError("keep=0 was accepted")


def conserves_mass(select: Select) -> None:
    """Sizes sum to the tokens of each image, unless the map says that it drops some."""
    x = features()
    tokens = x.size(1)
    size = torch.rand(3 * tokens, generator=torch.Generator().manual_seed(1)) + 0.5
    for keep in budgets(select, tokens):
        a = select(make_tokens(x, GRID), keep)
        pooled, new_size = a.reduce(x.flatten(0, 1), size)
        if a.lossy:
            assert not select.merges, "a strategy that merges must not lose mass"
            continue
        each = clusters_of_images(select, a, keep, GRID)
        assert_close(_by_image(new_size, each), size.view(3, -1).sum(1))
        weight, new_weight = size, new_size
        if isinstance(a, Assignment) and a.weight is not None:  # rows are means by weights of the map's own
            weight = a.weight.detach()
            new_weight = torch.zeros_like(new_size).index_add_(0, a.cluster, weight)
        mass = _by_image(pooled * new_weight[:, None], each)
        assert_close(mass, (x.flatten(0, 1) * weight[:, None]).view(3, tokens, -1).sum(1), rtol=1e-4, atol=1e-4)


def _by_image(rows: Tensor, each: list[int]) -> Tensor:
    return torch.stack([part.sum(dim=0) for part in rows.split(each)])


def lifts_back(select: Select) -> None:
    """``reduce(lift(y)) == y`` for hard maps; soft maps lift to values in the range of the clusters' values."""
    x = features()
    a = select(make_tokens(x, GRID), x.size(1) - 9)
    y = torch.randn(a.num_clusters, 5, generator=torch.Generator().manual_seed(2))
    if isinstance(a, Assignment):
        assert_close(a.reduce(a.lift(y))[0], y)
    else:
        constant = a.lift(torch.ones_like(y))
        assert_close(constant, constant.round(), rtol=0, atol=1e-5)  # 1, or 0 for a token that is dropped
        assert (a.lift(y).amax(dim=0) <= y.amax(dim=0) + 1e-5).all()


def treats_images_alone(select: Select) -> None:
    """The choice for an image does not depend on the rest of the batch; weights agree within rounding."""
    _check_alone(select, features(4), GRID, budgets(select, GRID[0] * GRID[1]))
    many = torch.randn(3, 24 * 24, 96, generator=torch.Generator().manual_seed(3))  # large: other kernels
    _check_alone(select, many, (24, 24), budgets(select, many.size(1))[-3::2])  # about half, and all but one


def _check_alone(select: Select, x: Tensor, grid: tuple[int, int], keeps: list[int]) -> None:
    mates = torch.cat([x[2:3], x[1:2] * 100 + 3, x[:1]])
    for keep in keeps:
        alone = select(make_tokens(x[2:3], grid), keep)
        for batch, place in ((x, 2), (mates, 0)):
            a = select(make_tokens(batch, grid), keep)
            n, k = x.size(1), clusters_of_images(select, a, keep, grid)[place]
            if isinstance(a, Assignment):
                mine = a.cluster.view(batch.size(0), n)[place]
                assert a.cluster_ptr is not None
                mine = torch.where(mine == a.num_clusters, k, mine - a.cluster_ptr[place])
                assert torch.equal(mine, alone.cluster), f"keep={keep}: the rest of the batch changed the choice"
            else:
                own = a.token // n == place
                assert isinstance(alone, SoftAssignment)
                assert torch.equal(a.token[own] - place * n, alone.token)
                assert torch.equal(a.cluster[own] - place * k, alone.cluster)
                assert_close(a.weight[own], alone.weight)
                if a.centroids is not None and alone.centroids is not None:
                    mine = a.centroids.unflatten(0, (batch.size(0), k))[place]
                    assert_close(mine, alone.centroids, rtol=1e-5, atol=1e-4)


def repeats_itself(select: Select) -> None:
    """The same call gives the same map, and does not change the global random state."""
    tokens = make_tokens(features(), GRID)
    before = torch.random.get_rng_state()
    first, second = (select(tokens, 30) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(_fields(first), _fields(second), strict=True))
    assert torch.equal(before, torch.random.get_rng_state()), "the global random state moved"


def survives_corner_cases(select: Select) -> None:
    """Constant, duplicate, zero and huge tokens, one token and thin grids give no NaN, and the right budget."""
    for name, (x, grid) in corner_cases().items():
        tokens = x.size(1)
        for keep in sorted({max(1, select.fewest(tokens)), max(tokens * 3 // 4, 1), tokens}):
            a = select(make_tokens(x, grid), keep)
            try:
                clusters_of_images(select, a, keep, grid)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error
            assert used(a)[1].unique().numel() == a.num_clusters, f"{name}: empty clusters"
            pooled, size = a.reduce(x.flatten(0, 1))
            assert pooled.isfinite().all() and size.isfinite().all(), f"{name}: not finite"
            assert a.lift(pooled).isfinite().all(), f"{name}: lift not finite"


def keeps_the_dtype(select: Select) -> None:
    """Half precision gives results of the same dtype, and the choice of the float32 copy."""
    for dtype in (torch.float16, torch.bfloat16):
        x = features().to(dtype)
        a = select(make_tokens(x, GRID), 30)
        b = select(make_tokens(x.float(), GRID), 30)
        assert torch.equal(a.cluster, b.cluster), f"{dtype}: another choice than in float32"
        if isinstance(a, SoftAssignment) and isinstance(b, SoftAssignment):
            assert a.weight.dtype == torch.float32, f"{dtype}: weights in {a.weight.dtype}"
            assert_close(a.weight, b.weight, msg=lambda m, dtype=dtype: f"{dtype}: other weights. {m}")
        pooled, size = a.reduce(x.flatten(0, 1))
        assert pooled.dtype == dtype and size.dtype == torch.float32
        assert a.lift(pooled).dtype == dtype


def ignores_autocast(select: Select) -> None:
    """Autocast does not change the choice."""
    x = features()
    plain = select(make_tokens(x, GRID), 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = select(make_tokens(x, GRID), 30)
    assert torch.equal(plain.cluster, cast.cluster)


def lets_gradients_through(select: Select) -> None:
    """Gradients reach the features through reduce and lift, and are finite, also for duplicate tokens."""
    for x in (features(2), corner_cases()["duplicate"][0], corner_cases()["zero"][0]):
        grid = GRID if x.size(1) == GRID[0] * GRID[1] else (4, 6)
        x = x.clone().requires_grad_()
        a = select(make_tokens(x, grid), x.size(1) * 3 // 4)
        rows = x.flatten(0, 1)
        (a.lift(a.reduce(rows)[0]) * torch.linspace(0, 1, x.size(2))).sum().backward()
        assert x.grad is not None and x.grad.isfinite().all() and x.grad.any()


def compiles_whole(select: Select) -> None:
    """``torch.compile(fullgraph=True)`` compiles choice and reduction to one graph, with equal results for any B.

    Where a threshold decides (``select.ragged``), shapes depend on values, and graph breaks are allowed.
    """

    def run(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = select(make_tokens(x, GRID), 30)
        pooled, size = a.reduce(x.flatten(0, 1))
        # Weighted maps may have empty slots, so that their shape is fixed.
        return a.cluster if isinstance(a, Assignment) else size, pooled, a.lift(pooled)

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=not select.ragged, backend="eager")
    for images in (2, 3, 5):  # the second and third run with another batch size
        x = features(images)
        for ours, theirs in zip(compiled(x), run(x), strict=True):
            assert_close(ours, theirs)
