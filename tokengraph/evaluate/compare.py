"""Compares the outputs for each image with the dense model's, and averages over a set."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.evaluate.read import Outputs

WORST = 0.05  # the share of images that "worst" averages
TOP = 5


def measures(dense: Outputs, other: Outputs) -> dict[str, np.ndarray]:
    """Measures each of B images, for the outputs that both runs have.

    Returns:
        ``top``: the five likeliest classes ``[B, 5]`` (fewer with fewer classes), int32. ``agree``: True if the
        likeliest class is the dense model's. ``kl``: ``KL(dense || other)`` of the class probabilities, nats.
        ``class_cosine``: cosine of the class tokens. ``patch_cosine``: cosine of the patch maps, mean over patches; the
        other map is resized bilinearly to the dense grid; dropped patches count 0. All but ``top`` are ``[B]``, float64
        or bool.
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
    """Returns at most five classes by falling logits, ``[B, 5]``; ties go to the lower number on every device."""
    return logits.argsort(dim=1, descending=True, stable=True)[:, :TOP]


def _fitted(maps: Tensor, like: Tensor) -> Tensor:
    if maps.dim() == 2 or maps.shape[2:] == like.shape[2:]:
        return maps
    return F.interpolate(maps, size=like.shape[2:], mode="bilinear", align_corners=False)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Returns the cosine over channels, mean over positions if there are any, ``[B]``."""
    cosine = F.cosine_similarity(a, b, dim=1)
    return cosine if cosine.dim() == 1 else cosine.flatten(1).mean(1)


def worst(values: np.ndarray) -> float:
    """Returns the mean of the lowest 5 % of the values, at least one value."""
    count = max(1, int(np.ceil(WORST * len(values))))
    return float(np.sort(values)[:count].mean())


def summary(found: dict[str, np.ndarray]) -> dict[str, float]:
    """Averages the measures of a set's images: agreement, mean KL, and cosines as mean and worst 5 %."""
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
    """Joins the measures of several parts of a set, in order; keeps measures that all parts have."""
    parts = [p for p in parts if p]
    shared = [k for k in parts[0] if all(k in p for p in parts)] if parts else []
    return {k: np.concatenate([p[k] for p in parts]) for k in shared}


def counted(parts: list[Tensor]) -> list[float]:
    """Averages patch tokens before the first block and after each, from each batch's ``[depth + 1, B]``."""
    return torch.cat(parts, dim=1).double().mean(dim=1).tolist()
