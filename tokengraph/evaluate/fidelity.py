"""``tg.fidelity`` compares a coarsened model with the plain one, without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tokengraph.adapters.base import Adapter, check_images
from tokengraph.adapters.coarse import SITE
from tokengraph.adapters.pause import is_paused
from tokengraph.attach.attach import attach
from tokengraph.attach.handle import Handle
from tokengraph.attach.planner import Standalone
from tokengraph.evaluate.compare import counted, joined, measures, summary
from tokengraph.evaluate.costs import anatomy, multiply_adds
from tokengraph.evaluate.own import check_made_for
from tokengraph.evaluate.read import Outputs, Reader
from tokengraph.evaluate.settings import Setting, read_setting
from tokengraph.kinds import explains
from tokengraph.select.base import Select


@dataclass(frozen=True)
class Fidelity:
    """The similarity of a coarsened model's outputs to the plain model's, over a set of images.

    Args:
        images: Number of images.
        cost: Multiply-adds of the blocks as a share of the plain model's, merging included; ``None`` if unknown.
        agreement: Share of images with the same likeliest class; ``None`` without a head.
        kl: Mean KL divergence from the plain model's class probabilities, nats.
        class_cosine: Mean cosine of the class token after the final norm (of the mean patch if there is none).
        class_worst: Its mean over the worst 5 % of the images.
        patch_cosine: Mean cosine of lifted patch tokens after the final norm; dropped patches count 0.
        patch_worst: Its mean over the worst 5 % of the images.
        counts: Mean patch tokens before the first block and after each.
    """

    images: int
    cost: float | None = None
    agreement: float | None = None
    kl: float | None = None
    class_cosine: float | None = None
    class_worst: float | None = None
    patch_cosine: float | None = None
    patch_worst: float | None = None
    counts: tuple[float, ...] = ()


@explains
def fidelity(
    model: nn.Module,
    images: Tensor | Iterable[Tensor],
    plan: Handle | str | Mapping[str, Any] | Setting | Standalone[Any],
) -> Fidelity:
    """Compares a model with itself under a strategy.

    Args:
        model: A supported model; its mode does not change, so call ``model.eval()`` first.
        images: ``[B, 3, H, W]``, normalised for the model, or several such batches.
        plan: The handle of a strategy that is attached to ``model``, which stays attached; or a setting such as
            ``"tome:13"``, or a :class:`tokengraph.Plan`, which is attached for this call. For a model of your own give
            the handle of ``attach(..., adapter=...)``. For other models use :func:`tokengraph.evaluate`.

    Returns:
        The measures of :func:`tokengraph.evaluate` that need no labels.

    Raises:
        ValueError: If there are no images, or the handle is another model's, is paused or was removed.
        TypeError: For other kinds of objects.

    Cost: two runs of all images; no gradients.

    Example:
        >>> from tokengraph.testing import tiny_vit
        >>> found = fidelity(tiny_vit(), torch.randn(2, 3, 32, 32), "tome:4")
        >>> [round(n) for n in found.counts]
        [16, 12, 8, 4]
    """
    if isinstance(plan, Handle):
        if plan.model is not model:
            raise ValueError("Expected the handle of this model (got another model's).")
        if not any(getattr(m.__dict__.get(SITE), "trace", None) is plan.trace for m in model.modules()):
            raise ValueError("Expected a handle that is attached (got one that was removed). Attach again.")
        if is_paused(model):
            raise ValueError(
                "Expected a handle that acts (got one that is paused: the plain model would be compared with itself). "
                "Call fidelity outside of handle.paused(); it pauses by itself."
            )
        return _compare(model, images, plan)
    if isinstance(plan, Standalone):
        with attach(model, plan) as handle:
            return _compare(model, images, handle)
    setting = read_setting(plan)
    select: Any = setting.select()
    if select is None or setting.resolution is not None or setting.model is not None:
        raise ValueError(
            f"Expected a strategy alone (got {setting.name!r}). "
            "tg.evaluate takes resolutions and models; of a file of tg.plan give tg.Plan.load(file)."
        )
    check_made_for(setting.made_for, model)
    options = {"prop_attn": setting.prop_attn, "size_bias": setting.size_bias}
    with attach(model, select, setting.schedule, **options) as handle:
        return _compare(model, images, handle)


def _compare(model: nn.Module, images: Tensor | Iterable[Tensor], handle: Handle) -> Fidelity:
    if not isinstance(images, Iterable):
        raise TypeError(f"Expected images as a tensor [B, 3, H, W], or several (got {type(images).__name__}).")
    batches, own = [images] if isinstance(images, Tensor) else images, _adapter(model)
    parts, ours, theirs = [], [], []
    for batch in batches:
        check_images(batch)
        with handle.paused() as plain:
            dense: Outputs = Reader(plain, adapter=own)(batch)
        coarse = Reader(model, handle, own)(batch)
        parts.append(measures(dense, coarse))
        if coarse.counts is not None and dense.counts is not None:
            ours.append(coarse.counts)
            theirs.append(dense.counts)
    number = sum(len(next(iter(p.values()), ())) for p in parts)
    if not number:
        raise ValueError("Expected at least one image, and a model with logits or tokens (got none).")
    counts = counted(ours) if ours else []
    share = _share(model, handle, counts, counted(theirs)) if ours else None
    return Fidelity(number, share, counts=tuple(counts), **summary(joined(parts)))


def _share(model: nn.Module, handle: Handle, counts: list[float], whole: list[float]) -> float | None:
    with handle.paused() as plain:
        body = anatomy(plain, _adapter(model))
    select = handle.select
    if body is None or not isinstance(select, Select):
        return None
    return multiply_adds(body, counts, select)[0] / multiply_adds(body, whole)[0]


def _adapter(model: nn.Module) -> Adapter | None:
    """The adapter with which something is attached to the model itself; ``None``: its parts carry none."""
    requests = (getattr(m.__dict__.get(SITE), "request", None) for m in model.modules())
    return next((request.adapter for request in requests if request is not None), None)
