"""The Laplacian of a graph, and its lowest eigenvectors."""

from __future__ import annotations

import torch
from torch import Tensor

from tokengraph.select.parts.graphs.pairs import Pairs

DENSE = 1024  # up to so many nodes a dense decomposition is the faster (measured on one thread, 10 eigenvectors)
LARGE = 8192  # beyond, it needs gigabytes
SHARE = 24  # in between, it is the faster for more than one eigenvector in so many nodes
STEPS = 300


def laplacian(pairs: Pairs, nodes: int, *, normalized: bool = True, loops: Tensor | None = None) -> Tensor:
    r"""Returns :math:`L = D - W`, or :math:`I - D^{-1/2} W D^{-1/2}`, dense ``[N, N]`` float64.

    Args:
        pairs: The edges of one graph.
        nodes: N.
        normalized: Which of the two. Rows of nodes without edges are zero in both.
        loops: Weight of each node's loop, ``[N]``, on the diagonal of W and in D; ``None``: none.
    """
    w = torch.zeros(nodes, nodes, dtype=torch.float64, device=pairs.a.device)
    weight = pairs.weight.double()
    w[pairs.a, pairs.b] = weight
    w[pairs.b, pairs.a] = weight
    if loops is not None:
        w.diagonal().add_(loops.double())
    degree = w.sum(dim=1)
    if not normalized:
        return torch.diag(degree) - w
    root = _inverse_root(degree)
    return torch.diag((degree > 0).double()) - root[:, None] * w * root


def low_eigenvectors(pairs: Pairs, nodes: int, count: int, *, normalized: bool = True) -> tuple[Tensor, Tensor]:
    """Returns the ``count`` lowest eigenvalues ``[R]`` and eigenvectors ``[N, R]`` of a graph's Laplacian, float64.

    By a dense decomposition up to 1,024 nodes, up to 8,192 nodes if ``24 * count > N``, and if ``3 * count > N``;
    otherwise by LOBPCG on the sparse matrix, from fixed start vectors.

    Args:
        pairs: The edges of one graph.
        nodes: N.
        count: R, at most N.
        normalized: As for :func:`laplacian`.

    Cost: ``O(N^3)`` dense; ``O((E R + N R^2))`` a step of LOBPCG, at most 300 steps.

    Source: Knyazev, SIAM J. Sci. Comput. 2001, by ``torch.lobpcg``.
    """
    count = min(count, nodes)
    if nodes <= DENSE or (SHARE * count > nodes and nodes <= LARGE) or 3 * count > nodes:
        values, vectors = torch.linalg.eigh(laplacian(pairs, nodes, normalized=normalized))
        return values[:count], vectors[:, :count]
    weight = pairs.weight.double()
    degree = weight.new_zeros(nodes).index_add_(0, pairs.a, weight).index_add_(0, pairs.b, weight)
    place = torch.arange(nodes, device=degree.device)
    if normalized:
        root = _inverse_root(degree)
        top, diagonal, weight = 2.0, (degree > 0).double(), weight * root[pairs.a] * root[pairs.b]
    else:
        top, diagonal = max(2.0 * float(degree.max()), 1e-12), degree
    # Its highest eigenvalues converge faster than the lowest of L, so the matrix is top * I - L.
    index = torch.stack([torch.cat([pairs.a, pairs.b, place]), torch.cat([pairs.b, pairs.a, place])])
    value = torch.cat([weight, weight, top - diagonal])
    matrix = torch.sparse_coo_tensor(index, value, (nodes, nodes), check_invariants=False).coalesce()
    start = torch.randn(nodes, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start[:, 0] = (degree.sqrt() if normalized else torch.ones_like(degree)).cpu()
    values, vectors = torch.lobpcg(matrix, count, X=start.to(degree.device), niter=STEPS, largest=True)
    order = values.argsort(descending=True, stable=True)
    return top - values[order], vectors[:, order]


def _inverse_root(degree: Tensor) -> Tensor:
    return torch.where(degree > 0, degree.clamp_min(torch.finfo(torch.float64).tiny).rsqrt(), 0.0)
