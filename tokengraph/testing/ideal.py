"""The ideal: a model with fewer tokens and no selection, the lower bound for the time of every strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters import Adapter, find_adapter
from tokengraph.adapters.coarse import SITE
from tokengraph.attention.open_map import OpenMap

PLACEMENTS = ("before", "inside", "after", "ahead", "around")


@contextmanager
def ideal(
    model: nn.Module,
    counts: Sequence[int],
    placement: str = "inside",
    *,
    open_maps: bool = False,
    span: str = "attention",
    adapter: Adapter | None = None,
) -> Iterator[nn.Module]:
    """Runs a model with given token counts by truncating the sequence, without selection or merging.

    It keeps the first tokens, as a view; if counts rise again, it adds zeros. Outputs are meaningless; the time is the
    least that these counts cost.

    Args:
        model: A model that :func:`tokengraph.attach` supports, with nothing attached; it is restored on exit.
        counts: Patch tokens before the first block and after each block, ``depth + 1`` numbers, as
            ``trace.counts`` or :func:`tokengraph.schedule.tokens_per_layer` gives them.
        placement: Where to truncate: ``"before"`` a block, ``"inside"`` (between attention and MLP) or ``"after"``;
            give the placement of the strategy that you compare with. ``"ahead"``: before the block that counts tell of.
            ``"around"``: the modules of ``span`` run on the first tokens alone; counts are then those inside each
            block, behind the input's, as ``trace.counts_worked`` gives them.
        open_maps: Use unfused attention in blocks that truncate, as for strategies that read the whole map.
        span: With that placement ``"attention"``, ``"mlp"``, ``"both"`` or ``"block"``.
        adapter: The adapter given to :func:`tokengraph.attach`, for a model of your own.

    Yields:
        The model itself.

    Raises:
        ValueError: If counts do not fit the model, placement is unknown, or the model is already changed; in a run, if
            its blocks take more than tokens (rotary tables, relative bias).

    Cost: one view in each block that truncates; other blocks stay unchanged.

    Example:
        >>> import torch
        >>> from tokengraph.testing import tiny_vit
        >>> with ideal(tiny_vit(), [16, 8, 8, 4]) as model:
        ...     model.forward_features(torch.randn(1, 3, 32, 32)).shape
        torch.Size([1, 5, 32])
    """
    core, adapter = find_adapter(model, adapter)
    blocks, prefix = adapter.blocks(core), adapter.num_prefix(core)
    _check(model, blocks, counts, placement)
    cut: list[nn.Module] = []
    try:
        for index, block in enumerate(blocks):
            before, after = _ends(counts, index, placement)
            if before is None and after is None:
                continue
            if placement == "around":
                block.__dict__["forward"] = _around(adapter, block, prefix + counts[index + 1], span)
                cut.append(block)
                continue
            ends = [None if n is None else prefix + n for n in (before, after)]
            block.__dict__["forward"] = _cutting(adapter, block, ends[0], ends[1], placement, open_maps)
            cut.append(block)
        yield model
    finally:
        for block in cut:
            del block.__dict__["forward"]


def _ends(counts: Sequence[int], index: int, placement: str) -> tuple[int | None, int | None]:
    """Returns the patch tokens that block ``index`` keeps before it, and inside or after it; ``None``: no cut there."""
    after = counts[index + 1] if counts[index + 1] != counts[index] else None
    if placement == "around":
        return None, counts[index + 1] if counts[index + 1] < counts[0] else None
    if placement == "ahead":
        return after, None
    if placement != "before":
        return None, after
    before = counts[index] if index == 0 or counts[index] != counts[index - 1] else None
    return before, after if index + 2 == len(counts) else None  # after the last block there is no next one


def _cut(x: Tensor, count: int | None) -> Tensor:
    """Returns the first ``count`` tokens, padded with zeros if there are fewer."""
    if count is None or count <= x.size(1):
        return x[:, :count]
    return torch.cat([x, x.new_zeros(x.size(0), count - x.size(1), x.size(2))], dim=1)


def _cutting(
    adapter: Adapter, block: nn.Module, before: int | None, after: int | None, placement: str, open_maps: bool
) -> Callable[..., Tensor]:
    def forward(x: Tensor, *others: Any, **named: Any) -> Tensor:
        """Runs the block on ``x [B, P+n, C]``, cut to the planned number of tokens at the strategy's place."""
        if any(isinstance(v, Tensor | tuple) for v in (*others, *named.values())):
            raise ValueError(
                f"Expected blocks that take nothing but tokens (got {type(block).__name__}, which takes a mask, a bias "
                "or rotary tables too)."
            )
        mask: Any = OpenMap({}) if open_maps else None  # keeps the map alive, as a strategy that reads it does
        x = adapter.attend(block, _cut(x, before), mask)
        if placement == "inside" and (after is None or after < x.size(1)):
            return adapter.feed(block, _cut(x, after))
        return _cut(adapter.feed(block, x), after)

    return forward


def _around(adapter: Adapter, block: nn.Module, count: int, span: str) -> Callable[..., Tensor]:
    def forward(x: Tensor, *others: Any, **named: Any) -> Tensor:
        """Runs the modules of the span on the first ``count`` rows of ``x [B, P+n, C]``, the others on all."""
        if any(isinstance(v, Tensor | tuple) for v in (*others, *named.values())):
            raise ValueError(
                f"Expected blocks that take nothing but tokens (got {type(block).__name__}, which takes more)."
            )

        def some(half: Callable[[Tensor], Tensor], x: Tensor, cut: bool) -> Tensor:
            return torch.cat([half(x[:, :count]), x[:, count:]], dim=1) if cut else half(x)

        def attend(rows: Tensor) -> Tensor:
            return adapter.attend(block, rows, None)

        def feed(rows: Tensor) -> Tensor:
            return adapter.feed(block, rows)

        if span == "block":
            return some(lambda rows: feed(attend(rows)), x, True)
        return some(feed, some(attend, x, span != "mlp"), span != "attention")

    return forward


def _check(model: nn.Module, blocks: list[nn.Module], counts: Sequence[int], placement: str) -> None:
    if placement not in PLACEMENTS:
        raise ValueError(f"Expected placement to be one of {', '.join(PLACEMENTS)} (got {placement!r}).")
    if any(SITE in m.__dict__ for m in model.modules()) or any("forward" in b.__dict__ for b in blocks):
        raise ValueError("Expected a model with its own forward (got one that is attached or cut). Remove that first.")
    if len(counts) != len(blocks) + 1:
        raise ValueError(
            f"Expected {len(blocks) + 1} counts, before the first block and after each (got {len(counts)})."
        )
    if (
        min(counts) < 0
        or placement != "around"
        and any(a < b != counts[0] for a, b in zip(counts[:-1], counts[1:], strict=True))
    ):
        raise ValueError(f"Expected counts >= 0 that only rise to the first again (got {list(counts)}).")
