"""The attention of a vision tower, read by hooks for strategies that need it; the tower keeps its fused kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.adapters import find_adapter
from tokengraph.attention.stats import AttentionStats
from tokengraph.select.base import Select

TOWERS = ("vision_tower", "vision_model", "visual", "vision_encoder")


class FoldedStats(AttentionStats):
    """A tower's attention over the tokens that its projector makes of patches, ``fold`` x ``fold`` of them each.

    Args:
        stats: Statistics over all tiles, ``[B, H, P+n, P+n]``.
        tiles: Which tiles, ``[T]``.
        fold: Patches along one side of a token.
    """

    def __init__(self, stats: AttentionStats, tiles: Tensor, fold: int) -> None:
        super().__init__(None, stats.scale, stats.num_prefix)
        self._of, self._tiles, self._fold = stats, tiles, fold

    @cached_property
    def _queries_and_keys(self) -> tuple[Tensor, Tensor]:
        q, k = self._of._queries_keys()
        return q[self._tiles], k[self._tiles]

    def _queries_keys(self) -> tuple[Tensor, Tensor]:
        if self._fold > 1:
            raise ValueError(
                "Expected a strategy that reads class attention, received attention or keys (got one that reads the "
                "whole map, where a token is made of several patches)."
            )
        return self._queries_and_keys

    def _patches(self) -> AttentionStats:
        return AttentionStats(lambda: self._queries_and_keys, self.scale, self.num_prefix)

    def class_row(self) -> Tensor:
        """As in :class:`AttentionStats`, the mean over a token's patches, ``[T, H, n]``."""
        return self._folded(self._patches().class_row()[..., None])[..., 0]

    def column_sums(self) -> Tensor:
        """As in :class:`AttentionStats`, the mean over a token's patches, ``[T, H, n]``."""
        return self._folded(self._patches().column_sums()[..., None])[..., 0]

    def heads_of_keys(self) -> Tensor:
        """Keys with the prefix in front, the mean over a token's patches, ``[T, H, P+n, D]``."""
        k = self._of.heads_of_keys()[self._tiles]
        return torch.cat([k[:, :, : self.num_prefix], self._folded(k[:, :, self.num_prefix :])], dim=2)

    def _folded(self, x: Tensor) -> Tensor:
        """The mean of ``x [T, H, N, D]`` over the patches of each token."""
        if self._fold == 1:
            return x
        side, fold = math.isqrt(x.size(2)), self._fold
        cells = x.unflatten(2, (side // fold, fold, side // fold, fold))
        return cells.mean(dim=(3, 5)).flatten(2, 3)


class Watched:
    """The attention of one block of a tower, over all tiles.

    Args:
        stats: Its statistics.
        patches: Patches of a tile.
        tiles: Tiles that the tower saw.
    """

    def __init__(self, stats: AttentionStats, patches: int, tiles: int) -> None:
        self.stats, self.patches, self.tiles = stats, patches, tiles

    def attention(self, rows: Tensor, total: int) -> AttentionStats:
        """The attention over the features of some tiles.

        Args:
            rows: Rows of their features among all, ``[T, n]``.
            total: All features.

        Raises:
            ValueError: If features do not come from patches tile by tile.
        """
        each, rest = divmod(total, self.tiles)
        fold = math.isqrt(max(self.patches // max(each, 1), 1))
        if rest or each != rows.size(1) or fold * fold * each != self.patches:
            raise ValueError(
                f"Expected one feature for each patch of a tile, or for each square of patches (got {total} features "
                f"of {self.tiles} x {self.patches} patches, {rows.size(1)} in a tile). Use a strategy that reads "
                'features alone, such as "dpc-knn".'
            )
        return FoldedStats(self.stats, rows[:, 0] // each, fold)


class Watch:
    """What the hooks of :func:`watch` have kept; :meth:`seen` after the tower has run."""

    def __init__(self, tower: nn.Module, layer: int) -> None:
        self.core, self.adapter = find_adapter(tower)
        blocks = self.adapter.blocks(self.core)
        self.block = blocks[layer if layer >= 0 else len(blocks) + layer]
        self.kept: dict[str, Tensor] = {}
        self.side: dict[str, Any] = {}

    def hooks(self) -> list[Any]:
        """Puts the hooks in; the caller removes them."""

        def keep(name: str) -> Any:
            return lambda module, args, output: self.kept.__setitem__(name, output.detach())

        def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            self.side = {n: kwargs[n] for n in self.adapter.side_inputs if n in kwargs}

        found = [part.register_forward_hook(keep(name)) for name, part in self.adapter.kept(self.block).items()]
        return [*found, self.block.register_forward_pre_hook(note, with_kwargs=True)]

    def seen(self) -> Watched:
        """The attention that the block has computed."""
        prefix = self.adapter.num_prefix(self.core)
        stats = self.adapter.statistics(self.block, self.kept, prefix, None, self.side)
        first = next(iter(self.kept.values()))
        return Watched(stats, first.size(1) - prefix, first.size(0))


@contextmanager
def watch(base: Any, select: Select) -> Iterator[list[Watched]]:
    """Hooks the tower's block whose output the model reads, while the tower runs; nothing for other strategies.

    Args:
        base: The model without its language head.
        select: The strategy; if it reads class attention or a map, or names a ``tower_layer``, the block is watched.

    Yields:
        A list that holds the attention after the block.

    Raises:
        ValueError: If the tower's attention cannot be read, or there is no class token for a strategy that needs it.
    """
    found: list[Watched] = []
    if select.reads not in ("class", "map") and not hasattr(select, "tower_layer"):
        yield found
        return
    layer = getattr(select, "tower_layer", None)
    hooked = _find(base, select, _layer_read(base) if layer is None else layer)
    hooks = hooked.hooks()
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
    found.append(hooked.seen())


def find_tower(base: Any) -> nn.Module:
    """The vision tower of a model.

    Raises:
        ValueError: If none of its parts is named like one.
    """
    for name in TOWERS:
        tower = getattr(base, name, None)
        if isinstance(tower, nn.Module):
            return tower
    raise ValueError(f"Expected a model with a vision tower (got {type(base).__name__} without {', '.join(TOWERS)}).")


def _find(base: Any, select: Select, layer: int) -> Watch:
    tower = find_tower(base)
    hint = 'Use a strategy that reads features alone, such as "dpc-knn" or "dpp".'
    try:
        hooked = Watch(tower, layer)
    except ValueError as error:
        raise ValueError(
            f"Expected a tower whose attention can be read, for {type(select).__name__} (got {type(tower).__name__}: "
            f"{error}) {hint}"
        ) from error
    if select.reads == "class" and not hooked.adapter.has_class_token(hooked.core):
        raise ValueError(
            f"Expected a tower with a class token for {type(select).__name__} (got {type(tower).__name__} without). "
            f"{hint}"
        )
    return hooked


def _layer_read(base: Any) -> int:
    """Index of the block whose output the model reads, counted from the end."""
    layer = getattr(base.config, "vision_feature_layer", -1)
    layer = layer[-1] if isinstance(layer, list | tuple) else layer
    return layer - 1 if isinstance(layer, int) and layer >= 0 else (-1 if layer is None else int(layer))
