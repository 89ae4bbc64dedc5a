"""The training loss of DynamicSpatial."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.flat.segment import wide
from tokengraph.kinds import explains
from tokengraph.losses import distillation_loss, ratio_loss, token_distillation_loss

WEIGHTS = {"classification": 1.0, "ratio": 10.0, "distillation": 0.5, "feature": 0.5}


class DynamicSpatialLoss(nn.Module):
    r"""The training loss of DynamicSpatial: :math:`L = L_{cls} + 10 L_{ratio} + 0.5 L_{KL} + 0.5 L_{feature}`.

    The last term is the squared error of the final map, its mean over all positions and channels; none is masked.

    Args:
        ratios: Share of slow positions of each stage; ``handle.select.ratios``.
        weights: Weights that replace these, by name: ``classification``, ``ratio``, ``distillation``, ``feature``. A
            term of weight 0 is not computed.
        classification: Loss of ``(logits, target)``; ``None``: cross-entropy, with class ids or soft targets.
        per: See :func:`tokengraph.losses.ratio_loss`.

    Raises:
        ValueError: For ratios outside (0, 1] (when called), or unknown names of weights.

    Source: the code of Rao et al., *Dynamic Spatial Sparsification*, TPAMI 2023.
    """

    @explains
    def __init__(
        self,
        ratios: Sequence[float],
        *,
        weights: Mapping[str, float] | None = None,
        classification: Callable[[Tensor, Tensor], Tensor] | None = None,
        per: str = "graph",
    ) -> None:
        super().__init__()
        for name in weights or ():
            if name not in WEIGHTS:
                raise ValueError(f"Expected names of weights to be one of {', '.join(WEIGHTS)} (got {name!r}).")
        self.ratios = tuple(ratios)
        self.weights = WEIGHTS | dict(weights or {})
        self.classification = _cross_entropy if classification is None else classification
        self.per = per

    def forward(
        self,
        logits: Tensor,
        target: Tensor,
        decisions: Sequence[Tensor],
        *,
        features: Tensor | None = None,
        teacher: tuple[Tensor, Tensor | None] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum and its parts, each unweighted and detached.

        Args:
            logits: ``[B, classes]``.
            target: Class ids ``[B]`` or soft targets ``[B, classes]``.
            decisions: ``handle.trace.decisions``, each ``[B, N]``.
            features: The final map, normalised, ``[B, N, C]``; see :func:`final_map`.
            teacher: Logits and final map of the dense model; ``None``: leaves out the terms that need them.

        Raises:
            ValueError: If a term lacks what it needs.
        """
        terms = {}
        if self.weights["classification"]:
            terms["classification"] = self.classification(logits, target)
        if self.weights["ratio"]:
            terms["ratio"] = ratio_loss(decisions, self.ratios, per=self.per)
        if teacher is not None and self.weights["distillation"]:
            terms["distillation"] = distillation_loss(logits, teacher[0])
        if teacher is not None and self.weights["feature"]:
            if features is None or teacher[1] is None:
                who = "student" if features is None else "teacher"
                raise ValueError(f"Expected features of the {who} (got none). Without them: weights={{'feature': 0}}.")
            terms["feature"] = token_distillation_loss(features, teacher[1])
        total = logits.new_zeros((), dtype=wide(logits))
        for name, term in terms.items():
            total = total + self.weights[name] * term
        return total, {name: term.detach() for name, term in terms.items()}


@explains
def final_map(model: nn.Module, features: Tensor) -> Tensor:
    """The final map as :class:`DynamicSpatialLoss` reads it: normalised position by position, ``[B, N, C]``.

    Args:
        model: timm's ConvNeXt or SwinTransformer.
        features: The output of its ``forward_features``. ConvNeXt normalises after pooling, so its norm follows here;
            Swin's map is already normalised.
    """
    if getattr(model, "output_fmt", "NCHW") == "NHWC":
        return features.flatten(1, 2)
    norm = getattr(model.head, "norm", None)
    features = features if norm is None else norm(features)  # type: ignore[operator]
    return features.flatten(2).transpose(1, 2)


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    logits = logits.to(wide(logits))
    return F.cross_entropy(logits, target.to(logits.dtype) if target.is_floating_point() else target)
