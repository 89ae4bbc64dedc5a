"""The laws of the maps that a strategy returns: composition, connections, exact gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.testing import assert_close

from tokengraph.maps.hard import Assignment
from tokengraph.maps.soft import SoftAssignment
from tokengraph.select.base import Select
from tokengraph.testing.choice_laws import GRID, features
from tokengraph.testing.tokens import make_tokens


def dense(a: Assignment | SoftAssignment) -> Tensor:
    """Returns the matrix ``S [M, K]`` of a map in float64; rows of dropped tokens are zero."""
    s = torch.zeros(a.num_tokens, a.num_clusters + 1, dtype=torch.float64)
    if isinstance(a, SoftAssignment):
        s.index_put_((a.token, a.cluster), a.weight.detach().double(), accumulate=True)
    else:
        s[torch.arange(a.num_tokens), a.cluster] = 1
    return s[:, :-1]


def composes(select: Select) -> None:
    """``a.then(b)`` reduces like ``a`` and then ``b``, and lifts like ``b`` and then ``a``."""
    x = features(2)
    a = select(make_tokens(x, GRID), 30)
    assert a.cluster_ptr is not None
    each = a.cluster_ptr.diff()
    pairs, mask = torch.arange(int(each.max())).expand(2, -1), torch.arange(int(each.max())) < each[:, None]
    b = Assignment.from_dense(
        pairs // 2, ((each + 1) // 2).tolist(), mask=mask
    )  # clusters j and j + 1 of an image join
    both, rows = a.then(b), x.flatten(0, 1)
    y = torch.randn(b.num_clusters, 3, generator=torch.Generator().manual_seed(4))
    assert_close(both.lift(y), a.lift(b.lift(y)), rtol=1e-4, atol=1e-5)
    if isinstance(both, SoftAssignment) and both.normalize is None:
        return  # sums, then means: only the way back is one map
    pooled, size = both.reduce(rows)
    in_turn, size_in_turn = b.reduce(*a.reduce(rows))
    assert_close(pooled, in_turn, rtol=1e-4, atol=1e-5)
    assert_close(size, size_in_turn, rtol=1e-4, atol=1e-5)


def connects(select: Select) -> None:
    """``connect`` returns ``S^T A S`` for weighted, directed edges."""
    x = features(2)
    a = select(make_tokens(x, GRID), 30)
    generator = torch.Generator().manual_seed(5)
    ends = torch.randint(a.num_tokens, (2, 300), generator=generator)
    weight = torch.rand(300, generator=generator)
    index, summed = a.connect(ends, weight)
    ours = torch.zeros(a.num_clusters, a.num_clusters, dtype=torch.float64)
    ours.index_put_((index[0], index[1]), summed.detach().double(), accumulate=True)
    tokens = torch.zeros(a.num_tokens, a.num_tokens, dtype=torch.float64)
    tokens.index_put_((ends[0], ends[1]), weight.double(), accumulate=True)
    s = dense(a)
    assert_close(ours, s.T @ tokens @ s, rtol=1e-4, atol=1e-4)


def has_exact_gradients(select: Select) -> None:
    """In float64 the gradients of ``reduce`` and ``lift`` match finite differences."""
    x = features(1, 2)[:, :12]
    with torch.no_grad():
        a = select(make_tokens(x, (3, 4)), 8)
    rows = x.flatten(0, 1).double().requires_grad_()
    y = torch.randn(a.num_clusters, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    reduced = a.reduce(rows.detach())[0].dtype
    assert reduced == torch.float64, f"reduce makes {reduced} of float64"
    # Weights may be float32; the maps are linear, so finite differences are exact for steps of any size.
    assert torch.autograd.gradcheck(lambda r: a.reduce(r)[0], rows, atol=1e-4)
    assert torch.autograd.gradcheck(a.lift, y.requires_grad_(), atol=1e-4)
