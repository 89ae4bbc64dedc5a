"""Measures of one image's outputs against the dense model's, and what they amount to over a set."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.evaluate.read import Outputs

WORST = 0.05  # the share of images that "worst" averages
TOP = 5


def measures(dense: Outputs, other: Outputs) -> dict[str, np.ndarray]:
    """What each of B images gives, as far as both runs have it.

    Returns:
        ``top``: the five likeliest classes ``[B, 5]`` (fewer with fewer classes), int32. ``agree``: whether the
        likeliest is the dense model's. ``kl``: ``KL(dense || other)`` of the class probabilities, nats.
        ``class_cosine``: of the class token. ``patch_cosine``: of the patch maps, mean over patches; the other map is
        resized to the dense one's grid, bilinear; dropped patches count 0. All ``[B]`` but the first, float64 or bool.
    """
    found: dict[str, np.ndarray] = {}
    if other.logits is not None and other.logits.dim() == 2:
        logits = other.logits.double()
        found["top"] = likeliest(logits).int().cpu().numpy()
        if dense.logits is not None and dense.logits.shape == other.logits.shape:
            whole = dense.logits.double()
            found["agree"] = (likeliest(whole)[:, 0] == likeliest(logits)[:, 0]).cpu().numpy()
            log_p, log_q = F.log_softmax(whole, 1), F.log_softmax(logits, 1)
            found["kl"] = (log_p.exp() * (log_p - log_q)).sum(1).clamp_min(0).cpu().numpy()
    for name, a, b in (("class_cosine", dense.token, other.token), ("patch_cosine", dense.patches, other.patches)):
        if a is None or b is None or a.size(1) != b.size(1):
            continue
        found[name] = _cosine(a.double(), _fitted(b.double(), a)).cpu().numpy()
    return found


def likeliest(logits: Tensor) -> Tensor:
    """Classes by falling logits, at most five, ``[B, 5]``; ties go to the lower number on every device."""
    return logits.argsort(dim=1, descending=True, stable=True)[:, :TOP]


def _fitted(maps: Tensor, like: Tensor) -> Tensor:
    if maps.dim() == 2 or maps.shape[2:] == like.shape[2:]:
        return maps
    return F.interpolate(maps, size=like.shape[2:], mode="bilinear", align_corners=False)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Over channels; the mean over places where there are any. ``[B]``."""
    cosine = F.cosine_similarity(a, b, dim=1)
    return cosine if cosine.dim() == 1 else cosine.flatten(1).mean(1)


def worst(values: np.ndarray) -> float:
    """The mean of the lowest 5 % of the values, of at least one."""
    count = max(1, int(np.ceil(WORST * len(values))))
    return float(np.sort(values)[:count].mean())


def summary(found: dict[str, np.ndarray]) -> dict[str, float]:
    """Figures of a set from the measures of its images: agreement, mean KL, and cosines as mean and worst 5 %."""
    figures: dict[str, float] = {}
    if "agree" in found:
        figures["agreement"] = float(found["agree"].mean())
        figures["kl"] = float(found["kl"].mean())
    for kind in ("class", "patch"):
        if (values := found.get(f"{kind}_cosine")) is not None:
            figures[f"{kind}_cosine"] = float(values.mean())
            figures[f"{kind}_worst"] = worst(values)
    return figures


def joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Measures of several parts of a set, in order; only those that all have."""
    parts = [p for p in parts if p]
    shared = [k for k in parts[0] if all(k in p for p in parts)] if parts else []
    return {k: np.concatenate([p[k] for p in parts]) for k in shared}


def counted(parts: list[Tensor]) -> list[float]:
    """Mean patch tokens an image before the first block and after each, from ``[depth + 1, B]`` of each batch."""
    return torch.cat(parts, dim=1).double().mean(dim=1).tolist()
