"""The loss of DiffRate: classification, and the distance of the model's cost from a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from tokengraph.flat.segment import wide
from tokengraph.kinds import explain_kinds
from tokengraph.nn.rates import Rates, count_flops


@explain_kinds
class DiffRateLoss(nn.Module):
    r"""The training loss of DiffRate, :math:`L_{cls} + \lambda (F / u - \text{target})^2`.

    F is :func:`tokengraph.nn.rates.count_flops` of the rates as they are.

    Args:
        target: Cost to come to, in units of ``unit`` multiply-adds.
        channels: C of the model.
        classes: Its classes.
        patch: Side of its patches in pixels.
        mlp_ratio: Hidden width of its MLPs over C.
        weight: Lambda, published: 5.
        unit: u, published: 1e9.
        classification: Loss of ``(logits, target)``; ``None``: cross-entropy.

    Source: Chen et al., *DiffRate*, ICCV 2023, and its code.
    """

    def __init__(
        self,
        target: float,
        *,
        channels: int,
        classes: int,
        patch: int = 16,
        mlp_ratio: float = 4.0,
        weight: float = 5.0,
        unit: float = 1e9,
        classification: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not target > 0 or not unit > 0:
            raise ValueError(f"Expected target and unit above 0 (got {target}, {unit}).")
        self.target, self.weight, self.unit = target, weight, unit
        self.shape: Mapping[str, float] = {
            "channels": channels, "classes": classes, "patch": patch, "mlp_ratio": mlp_ratio,
        }  # fmt: skip
        self.classification = classification or F.cross_entropy

    def flops(self, rates: Rates) -> Tensor:
        """Multiply-adds by the rates as they are, 0-dim, with gradients to them."""
        return count_flops(rates.counts(), rates.patches, **self.shape)  # type: ignore[arg-type]

    def forward(self, logits: Tensor, target: Tensor, rates: Rates) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the weighted sum, and a dict of its terms and of the cost in units, detached.

        Args:
            logits: ``[B, classes]``.
            target: Class ids ``[B]`` or soft targets ``[B, classes]``.
            rates: ``handle.select.learned``.
        """
        flops = self.flops(rates) / self.unit
        terms = {"classification": self.classification(logits.to(wide(logits)), target)}
        terms["cost"] = (flops - self.target).square()
        total = terms["classification"] + self.weight * terms["cost"]
        return total, {name: term.detach() for name, term in (terms | {"flops": flops}).items()}
