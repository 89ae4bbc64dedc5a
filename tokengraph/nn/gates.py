"""Gates that say which tokens take part in a block: SViT's small MLP, AdaViT's linear layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokengraph.flat.segment import wide
from tokengraph.kinds import explain_kinds


class Mlp(nn.Module):
    """Two linear layers with GELU between; state dict ``fc1``, ``fc2``."""

    def __init__(self, channels: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C]`` to ``[..., out]``."""
        return self.fc2(self.act(self.fc1(x)))


@explain_kinds
class MlpGate(nn.Module):
    r"""SViT's gate: :math:`\operatorname{LogSoftmax}(W_2 \operatorname{GELU}(W_1 \operatorname{LN}(x)))`.

    The state dict has the published names: ``norm``, ``mlp.fc1``, ``mlp.fc2``. Channel 0 is keep.

    Args:
        channels: C; hidden width C / 4.

    Cost: ``C^2 / 4`` multiply-adds a token.

    Source: Liu et al., *Revisiting Token Pruning for Object Detection and Instance Segmentation*, WACV 2024.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.norm = nn.LayerNorm(channels, eps=1e-5)
        self.mlp = Mlp(channels, max(channels // 4, 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities ``[..., 2]`` of rows ``[..., C]``, in float32 or wider."""
        out = self.mlp(self.norm(x))
        return out.to(wide(out)).log_softmax(dim=-1)


@explain_kinds
class LinearGate(nn.Module):
    """AdaViT's token gate: one logit a token, from the rows that attention projects.

    Args:
        channels: C.

    Source: Meng et al., *AdaViT*, CVPR 2022, and its code: the token part.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.linear = nn.Linear(channels, 1)
        nn.init.constant_(self.linear.bias, 2.0)  # tokens start selected

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``[...]`` of rows ``[..., C]``, in float32 or wider."""
        out = self.linear(x)[..., 0]
        return out.to(wide(out))


def gumbel_gate(logits: Tensor, *, threshold: float = 0.5, tau: float = 1.0, noise: Tensor | None = None) -> Tensor:
    r"""Draws which tokens a gate selects, 0 or 1, with the gradient of the soft sample.

    .. math:: y = \operatorname{sigmoid}((l + g_1 - g_2) / \tau), \quad d = [y > t] + y - \operatorname{stop}(y)

    Args:
        logits: ``[...]``.
        threshold: t.
        tau: Temperature.
        noise: The difference of two Gumbel draws, of the shape of ``logits``; ``None``: drawn.

    Raises:
        ValueError: If ``tau`` is not above 0.
    """
    if not tau > 0:
        raise ValueError(f"Expected tau > 0 (got tau={tau}).")
    logits = logits.to(wide(logits))
    if noise is None:
        uniform = torch.rand_like(logits).clamp(1e-7, 1 - 1e-7)
        noise = uniform.log() - (-uniform).log1p()  # the difference of two Gumbel draws is logistic
    soft = ((logits + noise) / tau).sigmoid()
    return (soft > threshold).to(soft.dtype) + (soft - soft.detach())
