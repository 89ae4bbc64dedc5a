"""The patch grids of one batch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class InputShape:
    """The patch grids of one batch, read from the call of the embedding.

    Args:
        grid: ``(H, W)`` in patches, or ``(T, H, W)`` of a video, if all images share it; ``None``: images differ, see
            ``grids``.
        grids: ``(H, W)`` of each image, if images differ or are padded; ``None``: all have ``grid``.
        present: ``[B, N]`` bool, True at patches and False at padding; ``None``: no padding.
        ordered: Whether patches come row by row; ViTMAE shuffles them.
    """

    grid: tuple[int, ...] | None = None
    grids: tuple[tuple[int, int], ...] | None = None
    present: Tensor | None = None
    ordered: bool = True

    @property
    def one_grid(self) -> tuple[int, ...] | None:
        """``(H, W)`` of the patches of every image; ``None``: images differ, or are padded."""
        if self.grids is None:
            return self.grid
        return self.grids[0] if self.present is None and len(set(self.grids)) == 1 else None

    @property
    def counts(self) -> tuple[int, ...] | None:
        """Patches of each image, where images are padded; ``None``: all have as many."""
        return None if self.present is None else tuple(h * w for h, w in self.grids or ())
