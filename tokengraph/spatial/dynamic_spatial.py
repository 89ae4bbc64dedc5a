"""DynamicSpatial: every position keeps a value, and prediction modules choose which ones are worth a full MLP."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from tokengraph.attach.block import coarse_class
from tokengraph.attach.checks import check_equal
from tokengraph.attach.handle import Handle
from tokengraph.attach.site import SITE
from tokengraph.nn.modes import in_eval, precise, untouched
from tokengraph.nn.predictor import TokenPredictor
from tokengraph.spatial.block import SpatialBlock, SpatialSite
from tokengraph.spatial.family import Family, find_family
from tokengraph.spatial.record import SpatialRecord
from tokengraph.spatial.stage import StageSite

STEPS = (0.0, 0.2, 0.4)  # by how much the shares of the stages fall


@dataclass(eq=False)
class SpatialAttachment(Handle):
    """DynamicSpatial attached to a model. Calling it calls the model; as a context manager it detaches at the end.

    Attributes:
        model: The model that was given, changed in place.
        trace: The record of its last run: ``decisions``, ``masks``, ``scores``, ``counts``.
        select: The strategy, as it was bound to the model; attached again it brings its weights along.
    """

    trace: SpatialRecord
    select: DynamicSpatial

    def remove(self) -> None:
        """Gives the model back as it was. Calling it again does nothing."""
        detach_spatial(self.model)


class DynamicSpatial:
    r"""Dynamic spatial sparsification of the third stage of a ConvNeXt or a Swin.

    Stage s acts before block ``layers[s]`` of it: a :class:`~tokengraph.nn.TokenPredictor` scores all positions, the
    best ``int(H * W * ratios[s])`` of them take the block's own MLP from there on, and the others one linear layer.
    Spatial mixing stays dense, the map stays H x W, and a fast position may become slow again.

    In train mode both paths run at every position and decisions are drawn (Gumbel, straight-through);
    ``handle.trace.decisions`` has them for :class:`~tokengraph.spatial.DynamicSpatialLoss`.
    ``attach(model, DynamicSpatial(0.7))`` puts predictors and fast paths into the model under their published names,
    and ``remove()`` takes them out.

    Args:
        keep: Shares are ``keep``, ``keep - 0.2`` and ``keep - 0.4`` of the positions.
        layers: Blocks of the third stage that the stages act before; default: 1, 2, 3 times a ninth of its depth,
            rounded down, at least 1.
        ratios: The shares themselves, each in (0, 1].
        threshold: Slow are positions whose probability is at least this, instead of a fixed number: images then
            differ, down to none and up to all.
        remerge: In training the two streams become one at each predictor, so that training computes what evaluation
            does for the same decisions. ``False``: the published form, where a position that changes its path goes on
            from a stream that evaluation never has.

    Raises:
        ValueError: If a share, a layer or a threshold is out of range.

    Cost: evaluation, for S of M positions slow: ``8 S C^2 + (M - S) C^2`` multiply-adds a block instead of
        ``8 M C^2``, and ``1.375 M C^2`` a predictor. Training costs more than dense training: both paths run.

    Source: Rao et al., *Dynamic Spatial Sparsification*, TPAMI 2023 (arXiv 2207.01580), by its code. Differs:
    ``remerge``, thresholds, ties to the lower index, any map size, any batch size (published: Swin fails at B = 2).
    """

    HINT: ClassVar[str] = "It removes no token; give it layers and ratios."

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

    def __repr__(self) -> str:
        return f"DynamicSpatial(ratios={[round(r, 4) for r in self.ratios]}, layers={self.layers})"

    def attach_to(self, model: nn.Module) -> SpatialAttachment:
        """Attaches; called by :func:`tokengraph.attach`.

        Args:
            model: timm's ``ConvNeXt`` or ``SwinTransformer``, or a wrapper around one.

        Raises:
            ValueError: For an unsupported model, one that is attached already, or layers that it lacks. The model is
                then as it was.
        """
        core, family = find_family(model)
        if any(SITE in m.__dict__ for m in model.modules()):
            raise ValueError("Expected a model without a strategy (got one that is attached). Call remove() first.")
        blocks = list(family.stage(core).blocks)  # type: ignore[union-attr]
        bound = self._bind(family, blocks)
        assert bound.layers is not None and bound.predictors is not None
        for block in {type(b): b for b in blocks[bound.layers[0] :]}.values():
            _check_halves(family, block)
        record = SpatialRecord()
        try:
            _swap(core, family, blocks[bound.layers[0] :], bound, record)
        except BaseException:
            detach_spatial(model)
            raise
        return SpatialAttachment(model, record, bound)

    def _bind(self, family: type[Family], blocks: list[nn.Module]) -> DynamicSpatial:
        """A strategy of its own with parts for a stage of these blocks."""
        bound = copy.copy(self)
        depth, channels = len(blocks), family.channels(blocks[0])
        if bound.layers is None:
            bound.layers = tuple(max(1, depth // 9) * (s + 1) for s in range(len(self.ratios)))
        if bound.layers[-1] >= depth:
            raise ValueError(f"Expected layers below {depth}, the depth of the stage (got {list(bound.layers)}).")
        if self.predictors is None:
            bound.predictors = nn.ModuleList(
                TokenPredictor(channels, eps=family.eps, pooling="mean") for _ in bound.layers
            )
            bound.fast = [family.new_parts(channels) for _ in blocks[bound.layers[0] :]]
        elif (
            len(self.fast) != depth - bound.layers[0]
            or tuple(self.fast[0]) != family.parts
            or (self.predictors[0].channels != channels)
        ):
            raise ValueError(
                "Expected the kind of model that this was attached to before (got another). Make a new one."
            )
        return bound


def detach_spatial(model: nn.Module) -> None:
    """Takes DynamicSpatial out of a model, also out of a copy or a loaded one. Without any it does nothing."""
    for module in list(model.modules()):
        site = module.__dict__.get(SITE)
        if isinstance(site, SpatialSite):
            del module.__dict__[SITE]
            site.undo(module)


def _swap(
    core: nn.Module, family: type[Family], blocks: list[nn.Module], bound: DynamicSpatial, record: SpatialRecord
) -> None:
    for block, parts in zip(blocks, bound.fast, strict=True):
        block.__dict__[SITE] = SpatialSite(type(block), family.parts)
        for name, part in parts.items():
            parts[name] = _put(block, name, part)
        block.__class__ = coarse_class(family.block_mixin, type(block))
    stage, host = family.stage(core), family.host(core)
    stage.__dict__[SITE] = StageSite(type(stage), (), bound, record)
    stage.__class__ = coarse_class(family.stage_mixin, type(stage))
    site: SpatialSite = host.__dict__.setdefault(SITE, SpatialSite())
    site.parts = ("score_predictor",)
    assert bound.predictors is not None
    _put(host, "score_predictor", bound.predictors)


def _put(host: nn.Module, name: str, part: nn.Module | nn.Parameter) -> nn.Module | nn.Parameter:
    """Puts a part into a module, with the device, dtype and mode of what is there; returns it as it is then."""
    like = next(host.parameters())
    if hasattr(host, name):
        raise ValueError(f"Expected a {type(host).__name__} without a part called {name!r} (got one).")
    if isinstance(part, nn.Module):
        host.add_module(name, part.to(like.device, like.dtype).train(host.training))
        return part
    if (part.device, part.dtype) != (like.device, like.dtype):
        part = nn.Parameter(part.detach().to(like.device, like.dtype), part.requires_grad)
    host.register_parameter(name, part)
    return part


def _check_halves(family: type[Family], block: nn.Module) -> None:
    """Raises unless the slow path everywhere gives, bit for bit, what the block's own forward gives."""
    like = next(block.parameters())
    if like.is_meta:
        return
    # A Swin block has the mask of one size, unless it makes them as it goes.
    height, width = getattr(block, "input_resolution", (8, 8))
    x = torch.linspace(-2, 2, height * width * family.channels(block), device=like.device).sin().to(like.dtype)
    with in_eval(block), untouched(block), precise(like.device), torch.no_grad():
        probe: SpatialBlock = copy.copy(block)  # type: ignore[assignment]
        probe.__class__ = coarse_class(family.block_mixin, type(block))
        x = probe.native(x.view(1, height, width, -1))
        wanted = block(x)
        mixed, base = probe.mix(x)
        got = probe.native(probe.last(x if base is None else base) + probe.slow(probe.last(mixed)))
    check_equal(block, wanted, got, "spatial mixing and an MLP")
