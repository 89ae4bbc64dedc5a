"""The k-nearest-neighbour graph of tokens; every backend gives the same edges."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.edges import knn_extension, knn_torch
from tokengraph.errors import check_finite, check_positive, check_ptr, check_tokens
from tokengraph.flat.looks import may_look
from tokengraph.kinds import explains
from tokengraph.optional import backends

BACKENDS = ("auto", "torch", "torch-cluster", "pyg-lib")
# On CPU the "torch" backend was faster than torch-cluster's k-d tree at every token shape measured
# (benchmarks/merge_cost.py). GPUs have not been measured.
AUTO = "torch"


@explains
def knn_graph(
    x: Tensor,
    k: int,
    *,
    ptr: Tensor | None = None,
    cosine: bool = False,
    loop: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""Connects each token to its k nearest tokens of the same image.

    .. math:: \mathcal{N}(i) = \operatorname{top}_k -\lVert x_i - x_j \rVert, \quad j \ne i

    Args:
        x: Token features, ``[B, N, C]``, or flat ``[M, C]`` with ``ptr`` (without it: one image).
        k: Neighbours per token, ``1 <= k < N``. An image of a ragged batch with too few tokens gets all edges.
        ptr: First token of each image, ``[B+1]`` int64, for flat ``x``.
        cosine: Compare directions; otherwise Euclidean distance. A zero vector has cosine 1 to other zero vectors and
            0 to all other vectors.
        loop: Count each token as its own first neighbour.
        backend: ``"torch"`` (batched product and top-k), ``"torch-cluster"``, ``"pyg-lib"``, or ``"auto"``.

    Returns:
        ``edge_index [2, E]`` int64, source (the neighbour) to target, flat ids, sorted by target and then nearest
        first; and ``weight [E]``, distance in feature units or cosine in [-1, 1], float32 or wider.

    Raises:
        ValueError: If ``k >= N`` (``k > N`` with ``loop``), tokens are not finite, ``ptr`` does not fit, or a distance
            exceeds the dtype of ``x``.
        ImportError: If a named backend is not usable; the message says why.

    Cost: ``"torch"``: ``O(B N^2 C)`` time and ``B N^2`` floats, in chunks above 256 MB. No gradients.

    Every backend gives the same edges: self excluded by index, ties to the lower index, no edges between images.
    Matrix products find the candidates. If the rounding bound of a row leaves a neighbour or a weight uncertain, its
    distances are recomputed by differences, so that equal tokens have distance 0. Under ``torch.compile`` shapes must
    not depend on values, so there products alone decide, and distances below about ``1e-3`` of the tokens' spread are
    not reliable.
    """
    neighbors, weight = knn_neighbors(x, k, ptr=ptr, cosine=cosine, loop=loop, backend=backend)
    target = torch.arange(neighbors.size(0), device=x.device)[:, None].expand_as(neighbors)
    if ptr is None:  # every token has exactly k
        return torch.stack([neighbors.flatten(), target.flatten()]), weight.flatten()
    there = neighbors >= 0
    return torch.stack([neighbors[there], target[there]]), weight[there]


@explains
@torch.no_grad()
def knn_neighbors(
    x: Tensor,
    k: int,
    *,
    ptr: Tensor | None = None,
    cosine: bool = False,
    loop: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The fixed-degree form of :func:`knn_graph`: ``neighbors [M, k]`` flat ids and ``weight [M, k]``.

    Arguments, errors and cost are the same. Neighbours are sorted, nearest first. In a ragged batch a missing neighbour
    is -1 with weight inf (-inf for cosine).
    """
    check_tokens(x, dims=(2, 3) if ptr is None else (2,))
    check_positive(k=k)
    if ptr is not None:
        check_ptr(ptr, x.size(0))
    flat = x.flatten(0, 1) if x.dim() == 3 else x
    counts = None if ptr is None else ptr.diff().tolist()
    images = x.size(0) if x.dim() == 3 else 1
    most = max(counts, default=0) if counts is not None else x.size(-2) if images else 0
    if k > most - (not loop):
        sign = "<=" if loop else "<"
        raise ValueError(f"Expected 1 <= k {sign} N={most} neighbours (got k={k}).")
    check_finite(flat)
    name = AUTO if backend == "auto" else backend
    flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
    with torch.autocast(x.device.type, enabled=False):  # it would take the products in half precision
        if cosine:
            flat = _directions(flat)
        if name == "torch" and counts is None:
            neighbors, distance = knn_torch.search_equal(flat.unflatten(0, (images, most)), k, loop=loop)
        elif name == "torch":
            neighbors, distance = knn_torch.search(flat, counts, k, loop=loop)  # type: ignore[arg-type]
        elif name in ("torch-cluster", "pyg-lib"):
            neighbors, distance = knn_extension.search(name, flat, counts or [most] * images, k, loop=loop)
        else:
            raise ValueError(f"Expected backend to be one of {', '.join(BACKENDS)} (got {backend!r}).")
    if not cosine:
        return neighbors, distance
    # |a - b|^2 = 2 - 2 cos for unit vectors.
    similarity = (1.0 - 0.5 * distance.square()).clamp_min_(-1.0)
    return neighbors, similarity.masked_fill_(distance == torch.inf, -torch.inf)


def directions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns unit vectors of rows ``[M, C]`` (zero rows stay zero), and ``[M, 1]`` bool, True at zero rows."""
    largest = torch.maximum(x.amax(dim=1, keepdim=True), -x.amin(dim=1, keepdim=True))
    # Scales first, so that squares neither overflow nor underflow.
    return F.normalize(x / largest.clamp_min(torch.finfo(x.dtype).tiny), dim=1), largest == 0


def _directions(x: Tensor) -> Tensor:
    """Returns unit vectors ``[M, C + 1]``; zero vectors point along the added axis, orthogonal to all others.

    The axis costs a copy and an odd width, so on CPU, where reading values is free, it is added only if some vector is
    zero.
    """
    unit, zero = directions(x)
    if may_look(x) and not bool(zero.any()):
        return unit
    return torch.cat([unit, zero.to(x.dtype)], dim=1)


__all__ = ["BACKENDS", "backends", "knn_graph", "knn_neighbors"]
