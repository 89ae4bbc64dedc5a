"""Rules of schedules: the number of tokens removed in each block, for any depth and number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

from tokengraph.kinds import explains
from tokengraph.schedule.budget import check_layers, tokens_to_keep

Removal = int | tuple[int, int]
Rule = Callable[[int, int], Sequence[Removal]]


@explains
def constant(removed: int) -> Rule:
    """Removes the same number of tokens in every block (ToMe's ``r``), as the int ``removed`` does by itself.

    Args:
        removed: Tokens removed in each block, at least 0.
    """
    return _Constant(removed)


@explains
def linear(removed: int) -> Rule:
    """Removes ``2 * removed`` tokens in the first block and linearly fewer down to none in the last one.

    The total is about that of :func:`constant`.

    Args:
        removed: Mean number of tokens removed in each block, at least 0.

    Source: the decreasing schedule of ToMe (Bolya et al., ICLR 2023).
    """
    return _Linear(removed)


@explains
def ratio(keep: float, *, prefix: int = 0) -> Rule:
    """Keeps the share ``keep`` of the current tokens in every block, rounded up.

    Args:
        keep: A share in (0, 1].
        prefix: Prefix tokens that the share counts too, as ToFu's code does: of T tokens with them, it removes
            ``floor(T - T * keep)``.
    """
    return _Ratio(keep, prefix)


@explains
def powers(keep: float, layers: Sequence[int]) -> Rule:
    """Keeps ``int(N * keep)`` of the N input tokens at the first of ``layers``, ``int(N * keep ** 2)`` at the second...

    Args:
        keep: A share in (0, 1].
        layers: Numbers of finished blocks, rising.

    Raises:
        ValueError: If ``keep`` is out of range, or if layers do not rise or are below 1.

    Example:
        >>> powers(0.7, (1, 2, 3))(4, 64)  # removed in each of 4 blocks
        [20, 13, 10, 0]

    Source: the schedule of TokenReduction (Haurum et al., ICCV workshop 2023) and of ATC (ECCV 2024): layers (3, 6, 9).
    """
    tokens_to_keep(float(keep), 1)
    if list(layers) != sorted(set(layers)) or any(layer < 1 for layer in layers):
        raise ValueError(f"Expected rising layers of at least 1 (got {list(layers)}). Layer l: l blocks are finished.")
    return _Powers(float(keep), tuple(layers))


@explains
def relative(keep: Mapping[int, float]) -> Relative:
    """Keeps shares of the current tokens, not of the input: ``{3: 0.7, 6: 0.7}`` keeps 70 %, then 49 %.

    Args:
        keep: ``{l: share}``: after l finished blocks, keep this share in (0, 1] of the tokens, rounded up.

    Raises:
        ValueError: If a layer is below 1 or a share out of range.
        TypeError: If a share is no float.

    Example:
        >>> relative({1: 0.5, 3: 0.5})(4, 196)  # removed in each of 4 blocks
        [98, 0, 49, 0]
    """
    for layer, share in keep.items():
        if isinstance(layer, bool) or not isinstance(layer, Integral) or layer < 1:
            raise ValueError(f"Expected layers of at least 1 (got {layer!r}). Layer l means: l blocks are finished.")
        if isinstance(share, bool) or not isinstance(share, Real) or isinstance(share, Integral):
            raise TypeError(f"Expected shares as floats in (0, 1] (got {share!r} at layer {layer}).")
        tokens_to_keep(float(share), 1)
    return Relative(tuple((int(layer), float(share)) for layer, share in sorted(keep.items())))


# Classes, not closures, so that a model with its schedule can be pickled.
@dataclass(frozen=True)
class _Constant:
    removed: int

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        return [self.removed] * depth


@dataclass(frozen=True)
class _Linear:
    removed: int

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        if depth == 1:
            return [self.removed]
        step = 2 * self.removed / (depth - 1)
        return [int(2 * self.removed - step * i) for i in range(depth)]


@dataclass(frozen=True)
class _Ratio:
    keep: float
    prefix: int = 0

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        removed, left = [], num_tokens
        for _ in range(depth):
            if self.prefix:
                whole = left + self.prefix
                removed.append(min(int(whole - whole * self.keep), left))
            else:
                removed.append(left - tokens_to_keep(float(self.keep), left))
            left -= removed[-1]
        return removed


@dataclass(frozen=True)
class _Powers:
    keep: float
    layers: tuple[int, ...]

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        check_layers(self.layers, depth)
        removed, left = [0] * depth, num_tokens
        for power, layer in enumerate(self.layers, 1):
            kept = max(min(int(num_tokens * self.keep**power), left), 1)
            removed[layer - 1], left = left - kept, kept
        return removed


@dataclass(frozen=True)
class Relative:
    """Shares of the current tokens, in order of layers; see :func:`relative`."""

    shares: tuple[tuple[int, float], ...]

    def kept(self, num_tokens: int) -> dict[int, int]:
        """Returns the schedule ``{l: tokens}`` for ``num_tokens`` input tokens."""
        kept = {}
        for layer, share in self.shares:
            num_tokens = tokens_to_keep(share, num_tokens)
            kept[layer] = max(num_tokens, 1)  # a budget is at least 1, also for an image without tokens
        return kept

    def __call__(self, depth: int, num_tokens: int) -> list[int]:
        """Returns the number of tokens removed in each block."""
        kept, removed = self.kept(num_tokens), []
        check_layers(kept, depth)
        for layer in range(1, depth + 1):
            removed.append(num_tokens - kept.get(layer, num_tokens))
            num_tokens -= removed[-1]
        return removed
