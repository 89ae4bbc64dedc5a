"""Prune & Merge and PM-Segmenter: fixed matrices that merge tokens by position, and recover them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tokengraph.kinds import explains


class Matrices(NamedTuple):
    """Matrices around a block: ``x = recover @ block(merge @ x) + (1 - mask) * x``.

    Args:
        merge: ``[K, P+N]``.
        recover: ``[P+N, K]``.
        mask: 0 at positions that are pruned, ``[P+N]``.
    """

    merge: Tensor
    recover: Tensor
    mask: Tensor


def position_score(attention: Tensor, gradient: Tensor, layer: int = 0, decay: float = 0.015) -> Tensor:
    r"""Scores positions by how much the loss hangs on attention to them, ``[N]``, of unit length.

    .. math:: s_j = \Big|\textstyle\sum_{b, h, i} \frac{\partial L}{\partial A_{bhij}} A_{bhij}\Big| / B H N,
              \qquad s \leftarrow (1 - \text{decay} \cdot \text{layer}) \, s / \lVert s \rVert

    Args:
        attention: ``[B, H, N, N]``.
        gradient: Of the loss, of the same shape. Add up several batches before.
        layer: Block, from 0.
        decay: Published: 0.015; PM-Segmenter: 0.

    Source: the code of Prune & Merge; read, not run.
    """
    score = (attention * gradient).sum(dim=(0, 1, 2)).abs() / math.prod(attention.shape[:3])
    return score / score.norm().clamp_min(1e-12) * (1 - decay * layer)


@explains
def prune_merge_matrices(
    rank: Tensor, keep: int, prune: int = 0, *, num_prefix: int = 1, official: bool = False
) -> Matrices:
    """Makes the matrices of Prune & Merge: centres stay, and each run of positions between two of them merges.

    Args:
        rank: Score of each patch position, ``[N]``, none negative.
        keep: Centres: positions of the highest scores.
        prune: Positions of the lowest scores, which count nothing.
        num_prefix: Prefix tokens, each a row of its own.
        official: Rows as in the code: a run's weights sum to its number of positive positions, a run without any has a
            row of zeros, and ``recover`` is the pseudoinverse. By default weights sum to one, empty runs have no row,
            and ``recover`` gives each position its row.

    Returns:
        The matrices, in float32.

    Raises:
        ValueError: If the numbers do not fit.

    Source: the code of Mao et al., *Prune and Merge: Efficient Token Compression for Vision Transformer with Spatial
    Information Preserved*, 2025.
    """
    center, gone = _split(rank, keep, prune)
    count, score = rank.numel(), rank.float().masked_fill(gone, 0.0)
    rows, row, inside = [], None, False
    for j in range(count):
        if center[j] or not inside:
            row = score.new_zeros(count)
            rows.append(row)
        assert row is not None
        row[j] = 1.0 if center[j] else score[j]
        inside = not center[j]
    found = []
    for row in rows:
        positive = row[row > 0]
        if positive.numel() == 0 and not official:
            continue
        scale = positive.mean() if official else positive.sum()
        found.append(row / scale if positive.numel() else row)
    return _whole(torch.stack(found), 1.0 - gone.float(), num_prefix, official)


@explains
def segment_matrices(
    rank: Tensor, keep: int, prune: int = 0, *, num_prefix: int = 1, official: bool = False
) -> Matrices:
    """Makes the matrices of PM-Segmenter: each centre owns the positions around it, to the middle, within its grid row.

    Args:
        rank: Score of each patch position of a square grid, ``[N]``, above 0.
        keep: Centres: positions of the highest scores.
        prune: Positions of the lowest scores, which count nothing; published: 0.
        num_prefix: As for :func:`prune_merge_matrices`.
        official: As in the code: weights are relative to the centre's, ``recover`` is the pseudoinverse, and a centre
            in the last column counts to the next row.

    Raises:
        ValueError: If the numbers do not fit.

    Source: the code of PM-Segmenter.
    """
    center, gone = _split(rank, keep, prune)
    count, score = rank.numel(), rank.float().masked_fill(gone, 0.0)
    side, centers = math.isqrt(count), center.nonzero()[:, 0].tolist()
    start, found = 0, []
    for i, c in enumerate(centers):
        stop = count
        if i + 1 < len(centers):
            stop = -(-(c + centers[i + 1]) // 2)
            row = (c + official) // side
            if row < stop // side:
                stop = (row + 1) * side
            stop = min(max(stop, start), count)
        line = score.new_zeros(count)
        line[start:stop] = score[start:stop] / score[c] if official else score[start:stop] / score[start:stop].sum()
        found.append(line)
        start = stop
    return _whole(torch.stack(found), 1.0 - gone.float(), num_prefix, official)


def _split(rank: Tensor, keep: int, prune: int) -> tuple[Tensor, Tensor]:
    """Marks centres and pruned positions, each ``[N]`` bool; ties to the lower index stay.

    Raises:
        ValueError: If the numbers do not fit.
    """
    count = rank.numel()
    if rank.dim() != 1 or not 1 <= keep <= count or not 0 <= prune <= count - keep:
        raise ValueError(
            f"Expected rank [N], 1 <= keep <= N and prune <= N - keep (got {list(rank.shape)}, {keep}, {prune})."
        )
    order = rank.float().argsort(descending=True, stable=True)
    none = torch.zeros(count, dtype=torch.bool, device=rank.device)
    return none.index_fill(0, order[:keep], True), none.index_fill(0, order[count - prune :], True)


def _whole(rows: Tensor, mask: Tensor, num_prefix: int, official: bool) -> Matrices:
    """Adds prefix tokens and the way back."""
    count, ahead = rows.size(1), torch.eye(num_prefix, device=rows.device)
    merge = torch.block_diag(ahead, rows)
    assert merge.shape == (num_prefix + rows.size(0), num_prefix + count)
    recover = torch.linalg.pinv(merge.double()).float() if official else (merge > 0).float().t().contiguous()
    return Matrices(merge, recover, torch.cat([mask.new_ones(num_prefix), mask]))
