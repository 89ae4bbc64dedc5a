"""Compares predicted class maps with masks: IoU over areas and along boundaries."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = 255
BAND = 0.02  # width of the boundary as a share of the diagonal, as published for boundary IoU


def predicted(logits: Tensor, side: int) -> Tensor:
    """Returns the class of each pixel, ``[B, S, S]`` int64; resizes logits ``[B, K, h, w]`` bilinearly first.

    With K = 1 a logit above 0 is class 1.
    """
    if logits.shape[2:] != (side, side):
        logits = F.interpolate(logits.float(), size=(side, side), mode="bilinear", align_corners=False)
    return (logits[:, 0] > 0).long() if logits.size(1) == 1 else logits.argmax(dim=1)


def overlaps(prediction: Tensor, target: Tensor, classes: int) -> dict[str, np.ndarray]:
    r"""Counts intersection and union of each class in each image.

    .. math:: \mathrm{IoU}_k = \frac{|G_k \cap P_k|}{|G_k \cup P_k|}, \qquad
        \mathrm{bIoU}_k = \frac{|\partial G_k \cap \partial P_k|}{|\partial G_k \cup \partial P_k|}

    where the boundary of a region is its pixels within 2 % of the diagonal from other regions or the image's edge.

    Args:
        prediction: ``[B, H, W]`` class numbers.
        target: The same; 255 is ignored.
        classes: K.

    Returns:
        ``inter``, ``union``, ``edge_inter``, ``edge_union``: pixels ``[B, K]`` int64.

    Raises:
        ValueError: If a mask has a class of K or more.

    Source: Cheng et al., *Boundary IoU*, CVPR 2021, eq. (2).
    """
    highest = int(target[target != IGNORED].max()) if bool((target != IGNORED).any()) else 0
    if highest >= classes:
        raise ValueError(f"Expected masks with classes below {classes} (got {highest}). 255 is ignored.")
    known = target != IGNORED
    width = max(1, round(BAND * (target.size(1) ** 2 + target.size(2) ** 2) ** 0.5))
    found: dict[str, list[Tensor]] = {"inter": [], "union": [], "edge_inter": [], "edge_union": []}
    for k in range(classes):
        truth, guess = (target == k) & known, (prediction == k) & known
        edges = boundary(truth, width), boundary(guess, width)
        for name, a, b in (("", truth, guess), ("edge_", *edges)):
            found[f"{name}inter"].append((a & b).flatten(1).sum(1))
            found[f"{name}union"].append((a | b).flatten(1).sum(1))
    return {name: torch.stack(values, dim=1).cpu().numpy() for name, values in found.items()}


def boundary(region: Tensor, width: int) -> Tensor:
    """Returns pixels of ``region [B, H, W]`` at most ``width`` pixels from its outside or from the image's edge."""
    outside = F.pad((~region).float()[:, None], (width,) * 4, value=1.0)
    near = F.max_pool2d(outside, 2 * width + 1, stride=1)[:, 0] > 0
    return region & near


def mean_iou(inter: np.ndarray, union: np.ndarray, scored: list[int] | None = None) -> np.ndarray:
    """Returns the mean over classes of summed intersections over summed unions, without classes that never appear.

    Args:
        inter: ``[..., K]`` pixels, summed over images.
        union: ``[..., K]`` pixels, summed over images.
        scored: The classes to average; ``None`` averages all.
    """
    if scored is not None:
        inter, union = inter[..., scored], union[..., scored]
    there = union > 0
    ratio = np.divide(inter, union, out=np.zeros(np.shape(inter)), where=there)
    return ratio.sum(-1) / np.maximum(there.sum(-1), 1)
