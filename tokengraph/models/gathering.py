"""Token gathering (TG-1), after Fast-iTPN; the authors published no code for it, the definition is this project's own.

Tokens attend inside windows, and a few gathering tokens (hubs) connect all windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.errors import check_grid, check_positive
from tokengraph.flat.looks import may_look
from tokengraph.flat.tables import table
from tokengraph.kinds import explain_kinds
from tokengraph.select.migration.redundancy import take_rows

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys, values, each [B, n, H, D], to [B, n, H, D]


class Windows(NamedTuple):
    """A layout of tokens in W windows of L slots each; R is B, or 1 if all images share the layout."""

    token: Tensor  # [R, W, L] int64: token in each slot; 0 where there is none
    filled: Tensor | None  # [R, W, L] bool; None: every slot has a token
    slot: Tensor  # [R, n] int64: flat slot of each token


def make_windows(
    grid: tuple[int, int], window: tuple[int, int], ids: Tensor | None = None, *, device: torch.device | str = "cpu"
) -> Windows:
    """Assigns tokens to windows of the grid; a token's window depends only on its grid id.

    Args:
        grid: ``(H, W)``.
        window: Rows and columns of a window in cells. Windows at the lower and right border may be smaller.
        ids: Grid ids of the remaining tokens, ``[B, n]``; ``None``: all tokens, in raster order.
        device: Device of the tables if ``ids`` is ``None``.

    Raises:
        ValueError: If a side of the window is below 1.

    Cost: ``O(B H W)`` integers; without ``ids`` a cached table.

    Example:
        >>> make_windows((2, 4), (2, 2)).token.tolist()
        [[[0, 1, 4, 5], [2, 3, 6, 7]]]

    Source: this project's own definition, after Fast-iTPN (Tian et al., TPAMI 2024).
    """
    check_positive(rows=window[0], columns=window[1])
    height, width = grid
    rows, columns = min(window[0], height), min(window[1], width)
    shape = (-1, -(-height // rows) * -(-width // columns), rows * columns)
    slot = _slots(height, width, rows, columns, str(device if ids is None else ids.device))
    if ids is None:
        token, filled = _tokens(height, width, rows, columns, str(device))
        regular = height % rows == 0 and width % columns == 0
        return Windows(token.view(shape), None if regular else filled.view(shape), slot[None])
    slot = slot.index_select(0, ids.flatten()).view(ids.shape)
    filled = torch.zeros(ids.size(0), shape[1] * shape[2], dtype=torch.bool, device=ids.device).scatter(1, slot, True)
    if may_look(ids):  # reads values, which would synchronise elsewhere
        return _compact(slot, filled.view(shape))
    places = torch.arange(ids.size(1), device=ids.device).expand_as(ids)
    return Windows(
        torch.zeros_like(filled, dtype=torch.long).scatter(1, slot, places).view(shape), filled.view(shape), slot
    )


def _compact(slot: Tensor, filled: Tensor) -> Windows:
    """Shortens windows ``[B, W, L]`` to the length of the fullest one; ``slot [B, n]`` counts in the full windows."""
    images, windows, length = filled.shape
    rank = filled.cumsum(dim=2) - 1
    longest = int(rank[..., -1].max()) + 1 if filled.numel() else 0
    slot = slot // length * longest + rank.flatten(1).gather(1, slot)
    token = torch.zeros(images, windows * longest, dtype=torch.long)
    token.scatter_(1, slot, torch.arange(slot.size(1)).expand_as(slot))
    filled = torch.arange(longest) <= rank[..., -1:]
    return Windows(token.view(images, windows, longest), filled, slot)


@table(64)
def _slots(height: int, width: int, rows: int, columns: int, device: str) -> Tensor:
    """Returns the flat slot of each grid id, ``[H*W]``: by window, then by row and column inside it."""
    y, x = torch.arange(height)[:, None], torch.arange(width)
    window = y // rows * -(-width // columns) + x // columns
    return (window * rows * columns + y % rows * columns + x % columns).flatten().to(device)


@table(64)
def _tokens(height: int, width: int, rows: int, columns: int, device: str) -> tuple[Tensor, Tensor]:
    """Returns the grid id in each slot (0 in empty slots), and True where a slot is filled."""
    slot = _slots(height, width, rows, columns, "cpu")
    size = -(-height // rows) * -(-width // columns) * rows * columns
    token = torch.zeros(size, dtype=torch.long).scatter(0, slot, torch.arange(height * width))
    return token.to(device), torch.zeros(size, dtype=torch.bool).scatter(0, slot, True).to(device)


def full_attention(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """Computes attention of all tokens to all tokens by the fused kernel.

    Args:
        q: Queries ``[B, n, H, D]``.
        k: Keys ``[B, n', H, D]``.
        v: Values, the shape of the keys.
        key_bias: Added to the logits of each key, ``[B, n']``, or a mask that broadcasts to ``[B, H, n, n']``.

    Returns:
        ``[B, n, H, D]``.

    Cost: that of ``scaled_dot_product_attention``.
    """
    if key_bias is not None:
        key_bias = (key_bias[:, None, None] if key_bias.dim() == 2 else key_bias).to(q.dtype)
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=key_bias)
    return out.transpose(1, 2)


def gathering_attention(q: Tensor, k: Tensor, v: Tensor, windows: Windows, key_bias: Tensor | None = None) -> Tensor:
    r"""Computes attention of n tokens and m gathering tokens over fewer edges, with one softmax per node and head.

    .. math::
        \mathcal N(i) = \{j : w(j) = w(i)\} \cup G, \qquad \mathcal N(g) = \{1 \dots n\} \cup G

    Args:
        q: Queries ``[B, n + m, H, D]``, gathering tokens last.
        k: Keys, the same shape.
        v: Values, the same shape.
        windows: The windows of the n tokens; the other tokens are gathering tokens.
        key_bias: Added to the logits of each key, ``[B, n + m]``.

    Returns:
        ``[B, n + m, H, D]``.

    Cost: ``O(B (W L (L + m) + n m) H D)``; no ``n x n`` scores. If every window is full, it needs no mask.

    Source: this project's own definition, after Fast-iTPN (Tian et al., TPAMI 2024).
    """
    images, (count, length), n = q.size(0), windows.token.shape[1:], windows.slot.size(1)
    hubs = torch.arange(n, q.size(1), device=q.device).expand(windows.token.size(0), count, -1)
    sources = torch.cat([windows.token, hubs], dim=2).flatten(1).expand(images, -1)
    tail = q.shape[2:]
    out = full_attention(
        take_rows(q, windows.token.flatten(1).expand(images, -1)).view(images * count, length, *tail),
        take_rows(k, sources).view(images * count, length + hubs.size(2), *tail),
        take_rows(v, sources).view(images * count, length + hubs.size(2), *tail),
        _window_bias(windows, sources, q, key_bias),
    )
    out = take_rows(out.reshape(images, count * length, *tail), windows.slot.expand(images, -1))
    if q.size(1) == n:
        return out
    return torch.cat([out, full_attention(q[:, n:], k, v, key_bias)], dim=1)


def _window_bias(windows: Windows, sources: Tensor, q: Tensor, key_bias: Tensor | None) -> Tensor | None:
    """Returns the bias on the logits of each window's keys, ``[B*W, L + m]``, or ``None``.

    Empty slots get a finite bias: a window without any key would otherwise give NaN, also in gradients.
    """
    count = windows.token.size(1)
    bias = q.new_zeros(())
    if key_bias is not None:
        bias = take_rows(key_bias, sources).unflatten(1, (count, -1)).to(q.dtype)
    if windows.filled is not None:
        seen = F.pad(windows.filled, (0, q.size(1) - windows.slot.size(1)), value=True)
        bias = torch.where(seen, bias, torch.finfo(q.dtype).min / 2)
    elif key_bias is None:
        return None
    return bias.expand(q.size(0), -1, -1).flatten(0, 1)


@dataclass(frozen=True)
@explain_kinds
class TokenGathering:
    """Settings of token gathering, after Fast-iTPN; the definition is this project's own.

    All blocks keep their weights; their attention runs on n tokens and m gathering tokens over fewer edges. With one
    window and no gathering tokens a block is exactly the official one. :func:`tokengraph.models.gathering_edges`
    returns the edges as a graph.

    Args:
        window: Size of a window in cells: one side, ``(rows, columns)``, ``None`` (no windows) or ``"auto"`` (a quarter
            of the grid's side, at least 7, so 7 at 14, 8 at 32 and 16 at 64).
        hubs: ``(rows, columns)`` of a coarse grid with one gathering token in each cell; ``None``: no gathering tokens.
        pooled: Gathering tokens start from the mean of their cell plus a learned part, initially zero. If False, they
            start from the learned part alone, initially random.
        global_layers: Blocks, counted from 1, with global attention.

    Raises:
        ValueError: If a side is below 1, or the window is no window.
    """

    window: int | tuple[int, int] | str | None = "auto"
    hubs: tuple[int, int] | None = (2, 2)
    pooled: bool = True
    global_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.window, str) and self.window != "auto":
            raise ValueError(f"Expected window to be a side, (rows, columns), None or 'auto' (got {self.window!r}).")
        if self.hubs is not None:
            check_positive(hub_rows=self.hubs[0], hub_columns=self.hubs[1])
        if self.window is not None:
            self.window_on((1, 1))

    @property
    def num_hubs(self) -> int:
        """Number of gathering tokens per image, m."""
        return 0 if self.hubs is None else self.hubs[0] * self.hubs[1]

    def window_on(self, grid: tuple[int, int]) -> tuple[int, int] | None:
        """Returns rows and columns of a window on this grid, or ``None``."""
        if self.window is None:
            return None
        if self.window == "auto":
            return max(7, -(-grid[0] // 4)), max(7, -(-grid[1] // 4))
        rows, columns = (self.window, self.window) if isinstance(self.window, int) else self.window
        check_positive(rows=rows, columns=columns)  # type: ignore[arg-type]
        return rows, columns  # type: ignore[return-value]

    def start(self, x: Tensor, grid: tuple[int, int], learned: Tensor) -> Tensor:
        """Returns the initial gathering tokens ``[B, m, C]`` for ``x [B, H*W, C]`` and ``learned [m, C]``."""
        hubs = learned.to(x.dtype).expand(x.size(0), -1, -1)
        if not self.pooled or self.hubs is None:
            return hubs
        height, width = check_grid(grid, x.size(1))
        pooled = F.adaptive_avg_pool2d(x.view(x.size(0), height, width, x.size(2)).permute(0, 3, 1, 2), self.hubs)
        return hubs + pooled.flatten(2).transpose(1, 2)

    def attend(self, layer: int, windows: Windows | None, key_bias: Tensor | None = None) -> Attend:
        """Returns the attention function ``(q, k, v) -> output`` of one block; ``layer`` counts from 1."""
        if windows is None or layer in self.global_layers:
            return partial(full_attention, key_bias=key_bias)
        return partial(gathering_attention, windows=windows, key_bias=key_bias)
