"""A linear map that brings a coarsened model's features back to the dense model's, fitted without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokengraph.kinds import explains

STRENGTHS = tuple(10 ** (k / 2) for k in range(-8, 5))  # ridge penalties, in units of the mean squared norm
FEWEST = 3  # images; with fewer the map cannot be tested on an image that it was not fitted on


@dataclass(frozen=True, eq=False)
class Realignment:
    """A map ``y = x W + b`` of features.

    Args:
        weight: W, ``[C, C]`` float64.
        bias: b, ``[C]`` float64.
        left: Squared error to the dense features that the map leaves, as a share of the error without it. Each image
            is left out of the fit for its own error, so this holds for new images of the same kind. 1: no map helps,
            and this one changes nothing.
        strength: The chosen penalty; ``inf`` where at most the mean is moved.
    """

    weight: Tensor
    bias: Tensor
    left: float
    strength: float

    def __call__(self, x: Tensor) -> Tensor:
        """Maps floats ``[..., C]``, in their own dtype."""
        if not x.is_floating_point() or not x.dim() or x.size(-1) != len(self.bias):
            raise ValueError(f"Expected floats [..., {len(self.bias)}] (got {x.dtype} {list(x.shape)}).")
        return x @ self.weight.to(x) + self.bias.to(x)

    def fold(self, head: nn.Linear) -> nn.Linear:
        """Returns a head for coarse features, which costs what ``head`` costs: ``head`` after the map.

        Args:
            head: A linear head of the dense features, ``[C]`` to ``[K]``; it does not change.

        Raises:
            TypeError: If it is no plain ``nn.Linear``.
            ValueError: If it takes another width.
        """
        if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
            raise TypeError(
                f"Expected a head of kind nn.Linear (got {type(head).__name__}). Give its linear layer, such as "
                "model.head.fc, or map the features instead."
            )
        if head.in_features != len(self.bias):
            raise ValueError(f"Expected a head that takes {len(self.bias)} features (got {head.in_features}).")
        old = head.weight.detach()
        how = {"device": old.device, "dtype": old.dtype}
        made: Any = nn.utils.skip_init(nn.Linear, head.in_features, head.out_features, **how)
        matrix = old.cpu().double()
        shift = matrix @ self.bias + (0.0 if head.bias is None else head.bias.detach().cpu().double())
        with torch.no_grad():
            made.weight.copy_(matrix @ self.weight.T)
            made.bias.copy_(shift)
        return made.train(head.training).requires_grad_(head.weight.requires_grad)


@explains
def realign(coarse: Tensor, dense: Tensor) -> Realignment:
    r"""Fits a linear map from a coarsened model's features to the dense model's, on images without labels.

    A head or an index that was made for dense features then serves a model with fewer tokens or a smaller image. With
    centred features x and y, it fits ridge regression that shrinks towards the identity,

    .. math:: W = I + \arg\min_D \lVert X D - (Y - X) \rVert^2 + \lambda \lVert D \rVert^2

    and takes the penalty with the least leave-one-out error, which follows from one decomposition.

    Args:
        coarse: Features of n images from the model with a strategy attached or smaller images, ``[n, C]``: what the
            head takes, such as ``model.forward_head(model.forward_features(x), pre_logits=True)`` in timm.
        dense: Features of the same images from the plain model, ``[n, C]``.

    Returns:
        A :class:`Realignment`. Give a few hundred images: of 800 solar cells and a ViT-S/14, 640 brought 168 px to the
        plain accuracy and 100 did not (``benchmarks/results/truth/realigned.md``).

    Raises:
        ValueError: If shapes differ, there are fewer than three images, or a number is not finite.
        TypeError: If an argument is no tensor of floats.

    Cost: a singular value decomposition of ``[n, C]`` in float64 on CPU, and a product of its size for each of 13
    penalties; about a second for 2,000 images of width 768.

    Source: Our own use of ridge regression; the leave-one-out error is that of Allen, *Technometrics* 16, 1974.

    Example:
        >>> dense = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        >>> found = realign(1.5 * dense + 1, dense)
        >>> found.left < 0.01
        True
    """
    x, y = _checked(coarse, dense)
    count, scale = len(x), max(float(x.abs().max()), float(y.abs().max())) or 1.0
    x, y = x / scale, y / scale  # squares of large numbers would overflow
    at, to = x.mean(dim=0), y.mean(dim=0)
    z, wanted = x - at, (y - to) - (x - at)
    u, s, v = torch.linalg.svd(z, full_matrices=False)
    energy, along = s.square(), u.T @ wanted
    unit = energy.sum() / count
    best, least = torch.inf, float((wanted * (count / (count - 1))).square().sum())
    for strength in STRENGTHS if unit > 0 else ():
        shrink = energy / (energy + strength * unit)
        alone = 1 - u.square() @ shrink - 1 / count  # 1 minus the leverage of each image
        error = float(((wanted - u @ (shrink[:, None] * along)) / alone.clamp_min(1e-9)[:, None]).square().sum())
        if error < least:
            best, least = strength, error
    weight, before = torch.eye(x.size(1), dtype=x.dtype), float((y - x).square().sum())
    if least >= before:
        return Realignment(weight, torch.zeros_like(to), 1.0, torch.inf)
    if best < torch.inf:
        weight = weight + v.T @ ((s / (energy + best * unit))[:, None] * along)
    return Realignment(weight, (to - at @ weight) * scale, least / before, best)


def _checked(coarse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
    for name, x in (("coarse", coarse), ("dense", dense)):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"Expected {name} as a tensor of floats (got {got}). For an array: torch.from_numpy(array)."
            )
        if x.dim() != 2 or not x.size(1):
            raise ValueError(f"Expected {name} of shape [images, channels] (got {list(x.shape)}).")
        if not bool(x.isfinite().all()):
            raise ValueError(f"Expected finite features (got NaN or infinity in {name}).")
    if coarse.shape != dense.shape:
        raise ValueError(
            f"Expected features of the same images and width (got {list(coarse.shape)} and {list(dense.shape)})."
        )
    if len(coarse) < FEWEST:
        raise ValueError(f"Expected at least {FEWEST} images (got {len(coarse)}). A few hundred serve well.")
    return coarse.detach().cpu().double(), dense.detach().cpu().double()
