"""DynamicSpatial: predictors choose the positions that take the full MLP; the others take one linear layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from tokengraph.attach.handle import Handle
from tokengraph.attach.planner import Standalone
from tokengraph.spatial.record import SpatialRecord

STEPS = (0.0, 0.2, 0.4)  # subtracted from ``keep``, stage by stage


@dataclass(eq=False, repr=False)
class SpatialAttachment(Handle):
    """DynamicSpatial attached to a model. Calling it calls the model; as a context manager it detaches at the end.

    Attributes:
        model: The model that was given, changed in place.
        trace: The record of its last run: ``decisions``, ``masks``, ``scores``, ``counts``.
        select: The strategy, as it was bound to the model; attached again it brings its weights along.
    """

    trace: SpatialRecord
    select: DynamicSpatial


class DynamicSpatial(Standalone[SpatialAttachment]):
    r"""Dynamic spatial sparsification of the third stage of a ConvNeXt or a Swin.

    Stage s acts before block ``layers[s]`` of it: a :class:`~tokengraph.nn.TokenPredictor` scores all positions, the
    best ``int(H * W * ratios[s])`` of them (slow) take the blocks' own MLP from there on, the others (fast) one linear
    layer. Spatial mixing stays dense, the map stays H x W, and a fast position may become slow again.

    In train mode both paths run at every position and decisions are drawn (Gumbel, straight-through);
    ``handle.trace.decisions`` has them for :class:`~tokengraph.spatial.DynamicSpatialLoss`.
    ``attach(model, DynamicSpatial(0.7))`` puts predictors and fast paths into the model under their published names,
    and ``remove()`` takes them out.

    Args:
        keep: Shares of slow positions are ``keep``, ``keep - 0.2`` and ``keep - 0.4``.
        layers: Blocks of the model's third stage before which positions are chosen; default: 1, 2, 3 times a ninth of
            its depth, rounded down, at least 1.
        ratios: The shares themselves, each in (0, 1].
        threshold: Makes positions with at least this probability slow, instead of a fixed number: an image may have
            none or only slow ones.
        remerge: Merges the two streams at each predictor in training, so that training and evaluation agree for the
            same decisions. ``False``: as published; a position that changes its path goes on from a stream that
            evaluation does not have.

    Raises:
        ValueError: If a share, a layer or a threshold is out of range.

    Cost: evaluation, for S of M positions slow: ``8 S C^2 + (M - S) C^2`` multiply-adds a block instead of
        ``8 M C^2``, and ``1.375 M C^2`` a predictor. Training costs more than dense training: both paths run.

    Source: Rao et al., *Dynamic Spatial Sparsification*, TPAMI 2023 (arXiv 2207.01580), by its code. Differs:
    ``remerge``, thresholds, ties to the lower index, any map size, any batch size (published: Swin fails at B = 2).
    """

    HINT: ClassVar[str] = "It removes no token; give it layers and ratios."
    learns: ClassVar[bool] = True

    def __init__(
        self,
        keep: float = 0.7,
        *,
        layers: Sequence[int] | None = None,
        ratios: Sequence[float] | None = None,
        threshold: float | None = None,
        remerge: bool = True,
    ) -> None:
        given = tuple(keep - step for step in STEPS) if ratios is None else tuple(ratios)
        for share in given:
            if not 0 < share <= 1:
                hint = " keep must be above 0.4; or give ratios." if ratios is None else ""
                raise ValueError(f"Expected shares in (0, 1] (got {share:g}).{hint}")
        if layers is not None and (not layers or list(layers) != sorted(set(layers)) or layers[0] < 0):
            raise ValueError(f"Expected layers that rise, each at least 0 (got {list(layers)}).")
        if layers is not None and len(layers) != len(given):
            raise ValueError(f"Expected one ratio a layer, S={len(layers)} (got {len(given)}).")
        if threshold is not None and not 0 < threshold < 1:
            raise ValueError(f"Expected threshold in (0, 1), a probability (got {threshold}).")
        self.keep = keep
        self.ratios = given
        self.layers = None if layers is None else tuple(layers)
        self.threshold = threshold
        self.remerge = remerge
        self.predictors: nn.ModuleList | None = None
        self.fast: list[dict[str, nn.Module | nn.Parameter]] = []  # of each sparsified block, by name
        self.noise: list[Tensor] | None = None  # Gumbel noise of each stage, [B, N, 2], instead of drawing it

    @classmethod
    def published(cls, keep: float = 0.7) -> DynamicSpatial:
        """The released behaviour: two streams through all of training.

        Source: the code of Rao et al., TPAMI 2023.
        """
        return cls(keep, remerge=False)

    def __repr__(self) -> str:
        return f"DynamicSpatial(ratios={[round(r, 4) for r in self.ratios]}, layers={self.layers})"
