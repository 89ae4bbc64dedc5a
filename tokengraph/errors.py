"""Checks of arguments at the public boundary; every message reads ``Expected WHAT (got VALUE). HINT``."""

from __future__ import annotations

import math
from numbers import Integral
from typing import overload

import torch
from torch import Tensor

from tokengraph.flat.looks import under_vmap


def check_tokens(x: Tensor, *, dims: tuple[int, ...] = (3,), name: str = "x") -> None:
    """Raises unless ``x`` is a floating-point tensor with one of the given numbers of dimensions."""
    if not isinstance(x, Tensor):
        raise TypeError(f"Expected {name} to be a Tensor (got {type(x).__name__}).")
    if x.dim() not in dims:
        shapes = " or ".join({2: "[M, C]", 3: "[B, N, C]", 4: "[B, C, H, W]"}.get(d, f"{d}-D") for d in dims)
        raise ValueError(f"Expected {name} of shape {shapes} (got {list(x.shape)}).")
    if not x.is_floating_point():
        raise TypeError(f"Expected floating-point {name} (got {x.dtype}). Convert with .float() first.")


def check_finite(x: Tensor, name: str = "tokens") -> None:
    """Raises if ``x`` has NaN or infinity. Reads the values, which synchronises with the host on CUDA."""
    if torch.compiler.is_compiling() or under_vmap() or x.numel() == 0:
        return
    if not bool(torch.isfinite(x.sum(dtype=torch.float64 if x.dtype == torch.float64 else torch.float32))):
        bad = int((~torch.isfinite(x)).any(dim=-1).sum())
        if bad:
            raise ValueError(f"Expected finite {name} (got NaN or infinity in {bad} rows). Clean or mask them first.")


def check_mask(mask: Tensor | None, x: Tensor, *, leading: bool = False) -> None:
    """Raises unless ``mask`` is ``None`` or ``[B, N]`` bool for ``x [B, N, ...]``.

    Args:
        mask: True where there is a token.
        x: The masked tokens.
        leading: Also raise if padding precedes a token. This reads values: a host synchronisation on CUDA.
    """
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"Expected mask to be a Tensor (got {type(mask).__name__}).")
    if mask.dtype != torch.bool:
        raise TypeError(f"Expected mask of dtype bool (got {mask.dtype}). Convert with mask > 0.")
    if mask.shape != x.shape[:2]:
        raise ValueError(f"Expected mask of shape [B, N] = {list(x.shape[:2])} (got {list(mask.shape)}).")
    if leading and not (torch.compiler.is_compiling() or under_vmap()):
        bad = int((mask[:, 1:] & ~mask[:, :-1]).any(dim=1).sum())
        if bad:
            raise ValueError(
                f"Expected real tokens first in every image (got padding in front of tokens in {bad} images). "
                "Move the tokens to the front: order = mask.int().argsort(dim=1, descending=True, stable=True)."
            )


def check_kind(value: object, kind: type, name: str) -> None:
    """Raises TypeError unless ``value`` is of the class ``kind``."""
    if not isinstance(value, kind):
        raise TypeError(f"Expected {name} to be a {kind.__name__} (got {type(value).__name__}).")


def check_layer(layer: object) -> None:
    """Raises TypeError unless it is an int."""
    if not isinstance(layer, Integral | torch.SymInt) or isinstance(layer, bool):
        raise TypeError(f"Expected a layer as an int, the number of finished blocks (got {layer!r}).")


def check_positive(**values: int) -> None:
    """Raises if one of the named integers is below 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | torch.SymInt):
            raise TypeError(f"Expected {name} to be an int (got {value!r}).")
        if value < 1:
            raise ValueError(f"Expected {name} >= 1 (got {name}={value}).")


def check_ptr(ptr: Tensor, num_tokens: int) -> None:
    """Raises unless ``ptr [B+1]`` starts at 0, never decreases, and ends at ``num_tokens``."""
    if ptr.dim() != 1 or ptr.numel() < 1 or ptr.dtype != torch.long:
        raise ValueError(f"Expected ptr of shape [B+1] and dtype int64 (got {list(ptr.shape)}, {ptr.dtype}).")
    values = ptr.tolist()
    if values[0] != 0 or values[-1] != num_tokens or any(a > b for a, b in zip(values, values[1:], strict=False)):
        raise ValueError(f"Expected ptr to rise from 0 to M={num_tokens} (got {values}).")


def check_sorted(batch: Tensor) -> None:
    """Raises unless ``batch [M]`` is sorted, as the flat layout needs the tokens of an image in one block."""
    if batch.numel() > 1 and bool((batch[1:] < batch[:-1]).any()):
        raise ValueError(
            "Expected a sorted batch vector (got one that decreases). Sort the tokens by image first: "
            "order = batch.argsort(stable=True)."
        )


@overload
def check_grid(grid: tuple[int, ...], num_tokens: int) -> tuple[int, int]: ...
@overload
def check_grid(grid: tuple[int, ...], num_tokens: int, *, video: bool) -> tuple[int, ...]: ...
def check_grid(grid: tuple[int, ...], num_tokens: int, *, video: bool = False) -> tuple[int, ...]:
    """Returns ``grid`` as ints; raises unless it has exactly ``num_tokens`` patches.

    Args:
        grid: ``(H, W)``, or with ``video`` also ``(T, H, W)``.
        num_tokens: Number of patches it must have.
        video: Whether to accept a grid of frames.
    """
    if not isinstance(grid, tuple | list) or len(grid) not in ((2, 3) if video else (2,)):
        wanted = "(H, W), or (T, H, W) for a video" if video else "(H, W)"
        hint = ""
        if isinstance(grid, tuple | list) and len(grid) == 3:
            hint = " This works on images alone: take frames as images of a batch, tokens.view(B * T, H * W, C)."
        raise TypeError(f"Expected grid as {wanted} (got {grid!r}).{hint}")
    sides = tuple(int(side) for side in grid)
    if min(sides) < 0 or math.prod(sides) != num_tokens:
        raise ValueError(
            f"Expected a grid of N={num_tokens} patches (got {' x '.join(map(str, sides))} = {math.prod(sides)}). "
            "Count only patch tokens: give prefix tokens by num_prefix."
        )
    return sides
