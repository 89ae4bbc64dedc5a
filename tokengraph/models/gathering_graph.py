"""Token gathering (TG-1) as a graph, after Fast-iTPN; the definition is this project's own.

Each window is a clique, and hubs connect to all nodes. Results equal those of the dense form.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.utils import softmax

from tokengraph.flat.segment import segment_sum
from tokengraph.kinds import explains
from tokengraph.models.gathering import make_windows


@explains
def gathering_edges(
    grid: tuple[int, int], window: tuple[int, int] | None, hubs: int = 0, *, ids: Tensor | None = None
) -> Tensor:
    """Returns the graph over which gathering attention runs, self loops included.

    The nodes of an image are its n tokens, then its m hubs; images follow one another. A token attends to the tokens of
    its window and to all hubs; a hub attends to all nodes of its image.

    Args:
        grid: ``(H, W)``.
        window: Rows and columns of a window in cells; ``None``: one window over the grid.
        hubs: m, the number of gathering tokens.
        ids: Grid ids of the remaining tokens, ``[B, n]``; ``None``: one image with all tokens.

    Returns:
        ``[2, E]`` int64, source to target, sorted by target, then source.

    Raises:
        ValueError: If a side of the window is below 1.

    Cost: ``B (n + m) n`` comparisons, so it is meant for inspection and tests, not for speed.

    Example:
        >>> gathering_edges((1, 4), (1, 2)).tolist()
        [[0, 1, 0, 1, 2, 3, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3]]

    Source: this project's own definition, after Fast-iTPN (Tian et al., TPAMI 2024).
    """
    left = torch.arange(grid[0] * grid[1])[None] if ids is None else ids
    full = make_windows(grid, grid if window is None else window, device=left.device)
    own = (full.slot[0] // full.token.size(2))[left]  # window of each token, [B, n]
    joined = own[:, :, None] == own[:, None]
    joined = torch.nn.functional.pad(joined, (0, hubs, 0, hubs), value=True)
    image, target, source = joined.nonzero().unbind(1)
    return torch.stack([source, target]) + image * joined.size(1)


@explains
def edge_attention(q: Tensor, k: Tensor, v: Tensor, edge_index: Tensor) -> Tensor:
    r"""Computes attention over the edges of a graph, with one softmax over the sources of each node.

    .. math:: y_a = \sum_{b \to a} \mathrm{softmax}_{b \to a}(q_a \cdot k_b / \sqrt D)\, v_b

    Args:
        q: Queries ``[M, H, D]``.
        k: Keys, the same shape.
        v: Values, the same shape.
        edge_index: ``[2, E]``, source to target.

    Returns:
        ``[M, H, D]``; nodes without incoming edges get zeros.

    Cost: ``O(E H D)`` time and memory.
    """
    if q.dim() != 3 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(f"Expected q, k and v of one shape [M, H, D] (got {[list(t.shape) for t in (q, k, v)]}).")
    source, target = edge_index
    score = (q.index_select(0, target) * k.index_select(0, source)).sum(dim=-1) * q.size(-1) ** -0.5
    weight = softmax(score, target, num_nodes=q.size(0))
    return segment_sum(weight[..., None] * v.index_select(0, source), target, q.size(0)).to(v.dtype)
