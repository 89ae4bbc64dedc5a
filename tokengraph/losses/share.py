"""How far the shares of tokens that gates select are from their targets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tokengraph.kinds import explain_kinds
from tokengraph.losses.dynamicvit import ratio_loss


@explain_kinds
class ShareLoss(nn.Module):
    r"""The mean over gates of the squared distance of the share of selected tokens from its target.

    Args:
        targets: One for each gate, in (0, 1].
        weight: Of the loss; published: 4 (SViT), 2 (AdaViT).
        per: ``"batch"``: the batch's mean share should meet the target, so that images may differ; ``"image"``: each
            image's should.
        together: Compares the mean over all gates with the mean target, as AdaViT's code does, instead of each gate.

    Raises:
        ValueError: If a target is out of range, or ``per`` is unknown.

    Example:
        >>> ShareLoss([0.5])([torch.tensor([[1.0, 0.0, 0.0, 0.0]])]).item()
        0.0625

    Source: Liu et al., *Revisiting Token Pruning*, WACV 2024; Meng et al., *AdaViT*, CVPR 2022; their codes.
    """

    def __init__(
        self, targets: Sequence[float], *, weight: float = 1.0, per: str = "batch", together: bool = False
    ) -> None:
        super().__init__()
        if not targets or not all(0 < t <= 1 for t in targets):
            raise ValueError(f"Expected targets in (0, 1] (got {list(targets)}).")
        if per not in ("batch", "image"):
            raise ValueError(f"Expected per to be 'batch' or 'image' (got {per!r}).")
        self.targets, self.weight, self.per, self.together = tuple(targets), weight, per, together

    def forward(self, decisions: Sequence[Tensor], *, ptr: Tensor | None = None) -> Tensor:
        """Returns the weighted loss, 0-dim.

        Args:
            decisions: ``handle.trace.decisions``: selections ``[B, N]`` of each gate, or ``[M]`` with ``ptr``.
            ptr: First token of each image, ``[B+1]``.

        Raises:
            ValueError: If there is not one for each target.
        """
        per = "graph" if self.per == "image" else "batch"
        if not self.together:
            return self.weight * ratio_loss(decisions, self.targets, per=per, ptr=ptr)
        mean = torch.stack(list(decisions)).mean(dim=0)
        return self.weight * ratio_loss([mean], [sum(self.targets) / len(self.targets)], per=per, ptr=ptr)
