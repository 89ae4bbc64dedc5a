"""What ``reduce`` did: for each image the tokens that remain, and the way back to the tile's grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokengraph.select.rounds import Map
from tokengraph.vlm.families.base import Tile


@dataclass(eq=False)
class Group:
    """Tiles that a strategy saw in one batch.

    Args:
        rows: Their rows among all features of the modality, ``[T * n]``.
        map: From these rows to clusters.
        place: Where each cluster stands among the features that remain, ``[K]``.
    """

    rows: Tensor
    map: Map
    place: Tensor


@dataclass(eq=False)
class Reduction:
    """The reduction of all features of one modality.

    Args:
        groups: What the strategy did.
        counts: Rows of each image before.
        kept: Rows of each image after.
        stands: The row whose place each remaining row took, ``[K]``, rising.
    """

    groups: list[Group]
    counts: list[int]
    kept: list[int]
    stands: Tensor

    def lift(self, y: Tensor) -> Tensor:
        """Expands remaining rows ``[K, C]`` to all rows ``[M, C]``; rows that were dropped get zeros."""
        if y.dim() != 2 or y.size(0) != self.stands.numel():
            raise ValueError(f"Expected y of shape [K={self.stands.numel()}, C] (got {list(y.shape)}).")
        out = y.new_zeros(sum(self.counts), y.size(1))
        out[self.stands] = y
        for group in self.groups:
            out[group.rows] = group.map.lift(y[group.place])
        return out


@dataclass(eq=False)
class ImageRecord:
    """What remains of one image: of one tile where the model makes a tensor of tiles, of a video with all its frames.

    Args:
        modality: ``"image"`` or ``"video"``.
        prompt: Row of the batch in which it stands.
        tiles: Its tiles, with rows counted within this image.
        count: Its tokens before.
        kept: Its tokens after.
        stands: For each remaining token the original token whose place it has, ``[kept]``.
    """

    modality: str
    prompt: int
    tiles: list[Tile]
    count: int
    kept: int
    stands: Tensor
    _all: Reduction
    _index: int

    def lift(self, y: Tensor) -> Tensor:
        """Expands one row for each remaining token, ``[kept, C]``, to one for each original, ``[count, C]``.

        A merged token's row goes to all its members; dropped tokens get zeros.
        """
        if y.dim() != 2 or y.size(0) != self.kept:
            raise ValueError(f"Expected y of shape [{self.kept}, C], a row for each token (got {list(y.shape)}).")
        every = y.new_zeros(sum(self._all.kept), y.size(1))
        start, first = sum(self._all.kept[: self._index]), sum(self._all.counts[: self._index])
        every[start : start + self.kept] = y
        return self._all.lift(every)[first : first + self.count]

    def maps(self, y: Tensor) -> list[Tensor]:
        """Lifts rows ``[kept, C]`` to one picture ``[C, H, W]`` (``[C, T, H, W]``) for each tile on a grid."""
        lifted = self.lift(y)
        return [lifted[t.rows].T.reshape(-1, *t.grid) for t in self.tiles if t.grid is not None]

    def kept_masks(self) -> list[Tensor]:
        """For each tile on a grid, where tokens remain: ``[H, W]`` bool (``[T, H, W]`` across frames)."""
        there = torch.zeros(self.count, dtype=torch.bool, device=self.stands.device)
        there[self.stands] = True
        return [there[t.rows].view(t.grid) for t in self.tiles if t.grid is not None]

    def clusters(self) -> list[Tensor]:
        """For each tile on a grid, the remaining token that each place belongs to, ``[H, W]`` int64; -1: dropped.

        A place that feeds several tokens has the one with the largest share. For pictures, see
        :func:`tokengraph.viz.plot_clusters`.
        """
        share, number = self.lift(torch.eye(self.kept, device=self.stands.device)).max(dim=1)
        number = torch.where(share > 0, number, -1)
        return [number[t.rows].view(t.grid) for t in self.tiles if t.grid is not None]

    def __repr__(self) -> str:
        grids = [t.grid for t in self.tiles]
        return f"ImageRecord({self.modality} of prompt {self.prompt}: {self.kept} of {self.count} tokens, {grids})"


@dataclass(eq=False)
class Record:
    """What :func:`tokengraph.vlm.reduce` did.

    Args:
        images: One record an image or video, in the order of the prompts' placeholders, images first.
        columns: Columns of the prompts before and after, padding included.
        family: Name of the model's family.
    """

    images: list[ImageRecord]
    columns: tuple[int, int]
    family: str

    @property
    def kept(self) -> list[int]:
        """Tokens that remain of each image."""
        return [image.kept for image in self.images]

    @property
    def counts(self) -> list[int]:
        """Tokens of each image before."""
        return [image.count for image in self.images]

    def __repr__(self) -> str:
        return f"Record({self.family}: {sum(self.kept)} of {sum(self.counts)} visual tokens, images {self.kept})"
