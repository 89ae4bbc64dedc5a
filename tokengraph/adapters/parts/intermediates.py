"""Intermediate features of timm and open_clip: which blocks they come from, and how they are lifted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from tokengraph.adapters.coarse import Coarse, Reader


class WithIntermediates(Coarse):
    """Mixin of a swapped model that has ``forward_intermediates``."""

    def prune_intermediate_layers(self, *args: Any, **kwargs: Any) -> Any:
        """Raises RuntimeError: the schedule was made for the current blocks."""
        raise RuntimeError("Expected a model to prune without a strategy (got an attached one). Call handle.remove().")


def lift_for(trace: Reader, output_fmt: str, norm: Callable[[Tensor], Tensor] | None = None) -> Callable[..., Tensor]:
    """Returns a function that lifts a layer's tokens to full resolution in this format.

    Args:
        trace: The record of the run.
        output_fmt: ``"NCHW"`` or ``"NLC"``.
        norm: Applied to every patch after lifting; ``None``: no norm.

    Raises:
        ValueError: For another format.
    """
    if output_fmt not in ("NCHW", "NLC"):
        raise ValueError(f"Expected output_fmt to be NCHW or NLC (got {output_fmt!r}).")
    lift = trace.as_map if output_fmt == "NCHW" else trace.lift
    if norm is None:
        return lift
    axis = 1 if output_fmt == "NCHW" else 2

    def normed(tokens: Tensor, **where: Any) -> Tensor:
        rows = norm(lift(tokens, **where).movedim(axis, -1))
        if axis == 2 and trace.present is not None:  # padding stays zero
            rows = rows * trace.present[..., None]
        return rows.movedim(-1, axis).contiguous()

    return normed


def finished_blocks(indices: int | list[int] | None, depth: int) -> list[int]:
    """Number of finished blocks at each intermediate, in the order in which timm returns them."""
    if indices is None:
        return list(range(1, depth + 1))
    chosen = range(depth - indices, depth) if isinstance(indices, int) else [i % depth for i in indices]
    return [i + 1 for i in sorted(set(chosen))]
