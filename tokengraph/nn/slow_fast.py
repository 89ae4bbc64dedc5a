"""Two paths through a layer: some nodes take the slow one, all others the fast one, and no node is removed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokengraph.flat.tables import equal_ptr

Path = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Partition:
    """The nodes of a batch, split into a slow and a fast set.

    Args:
        slow: Flat ids of the nodes on the slow path, ``[S]`` int64.
        fast: Flat ids of all other nodes, ``[M - S]`` int64.
    """

    slow: Tensor
    fast: Tensor

    @property
    def mask(self) -> Tensor:
        """Returns ``[M]`` bool, True at slow nodes."""
        size = self.slow.numel() + self.fast.numel()
        return torch.zeros(size, dtype=torch.bool, device=self.slow.device).index_fill(0, self.slow, True)


def split_by_count(score: Tensor, count: int) -> Partition:
    """Sends the ``count`` nodes with the best scores of each image to the slow path.

    Args:
        score: ``[B, N]``; ties go to the lower index.
        count: Slow nodes per image, in [0, N].

    Raises:
        ValueError: If ``score`` has another shape, or ``count`` is outside [0, N].

    Cost: one sort of ``[B, N]``; no host synchronisation.

    Example:
        >>> split_by_count(torch.tensor([[0.1, 0.9], [0.5, 0.5]]), 1).slow.tolist()
        [1, 2]
    """
    if score.dim() != 2:
        raise ValueError(f"Expected score of shape [B, N] (got {list(score.shape)}).")
    images, nodes = score.shape
    if not 0 <= count <= nodes:
        raise ValueError(f"Expected 0 <= count <= N={nodes} slow nodes per image (got {count}).")
    order = score.detach().argsort(dim=1, descending=True, stable=True)
    order = order + equal_ptr(images, nodes, score.device)[:-1, None]
    return Partition(order[:, :count].reshape(-1), order[:, count:].reshape(-1))


def split_by_mask(mask: Tensor) -> Partition:
    """Sends the nodes where ``mask`` (bool, any shape, flat order) is True to the slow path.

    Images may have different numbers of slow nodes.

    Args:
        mask: bool, any shape; its flat order is that of the nodes.

    Cost: two passes, and a host synchronisation on CUDA.
    """
    flat = mask.reshape(-1)
    return Partition(flat.nonzero().squeeze(1), flat.logical_not().nonzero().squeeze(1))


def slow_fast(x: Tensor, base: Tensor, partition: Partition, slow: Path, fast: Path) -> Tensor:
    r"""Applies the slow path to the slow nodes and the fast path to all others, and adds the results to ``base``.

    .. math:: y_i = b_i + \begin{cases} \mathrm{slow}(x_i) & i \in S \\ \mathrm{fast}(x_i) & \text{else} \end{cases}

    Args:
        x: Nodes, ``[M, C]``.
        base: b, the residual stream, ``[M, C]``; may be ``x``.
        partition: The slow nodes and the fast ones.
        slow: ``[S, C] -> [S, C]``, row by row.
        fast: ``[M - S, C] -> [M - S, C]``, row by row.

    Returns:
        ``[M, C]``, in the dtype to which torch promotes their sum.

    Raises:
        ValueError: If the partition has another number of nodes.

    Cost: each path on its own nodes, a gather and a scatter of ``[M, C]``; no host synchronisation.

    Source: Rao et al., *Dynamic Spatial Sparsification*, TPAMI 2023, by its code (DynamicViT's).
    """
    nodes = partition.slow.numel() + partition.fast.numel()
    if x.size(0) != nodes or base.size(0) != nodes:
        raise ValueError(f"Expected M={nodes} nodes, as the partition has (got {x.size(0)} and {base.size(0)}).")
    update_slow = slow(x.index_select(0, partition.slow))
    update_fast = fast(x.index_select(0, partition.fast))
    dtype = torch.promote_types(base.dtype, torch.promote_types(update_slow.dtype, update_fast.dtype))
    out = base.to(dtype).index_add(0, partition.slow, update_slow.to(dtype))
    # Nothing else holds the sum, and no backward reads it, so it may be changed in place.
    return out.index_add_(0, partition.fast, update_fast.to(dtype))


def merge(slow: Tensor, fast: Tensor, mask: Tensor) -> Tensor:
    """Selects ``slow`` where ``mask`` is 1 and ``fast`` where it is 0, with exact values there.

    The gradient of the mask is that of ``slow - fast``. The three tensors have one shape, or broadcast to one.

    Args:
        slow: Values where ``mask`` is 1.
        fast: Values where ``mask`` is 0.
        mask: 0 or 1.

    Returns:
        The selected values.

    Cost: three passes; no host synchronisation.
    """
    mask = mask.to(slow.dtype)
    return slow * mask + fast * (1 - mask)
