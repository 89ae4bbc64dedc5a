"""A linear probe on patches, for masks: closed-form least squares from sums over chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.evaluate.dense import IGNORED
from tokengraph.evaluate.images import Images

Decode = Callable[[Tensor], Tensor]


def highest_class(images: Images) -> int:
    """Returns the highest class number in the masks; ignores 255 and unreadable masks, which the run reports.

    Cost: reads every mask once.
    """
    highest = 0
    for index in range(len(images)):
        try:
            values = np.asarray(images.mask(index))
            known = values[values != IGNORED]
            highest = max(highest, int(known.max()) if known.size else 0)
        except Exception:  # the run reports it
            continue
    return highest


def sums(patches: Tensor, targets: Tensor, classes: int) -> dict[str, np.ndarray]:
    r"""Returns the least-squares sums of some images: :math:`X^T W X` and :math:`X^T W Y`.

    Args:
        patches: ``[B, C, h, w]``; X are these rows and a column of ones.
        targets: ``[B, S, S]`` class numbers; Y is the share of each class in a patch, W the share that is not 255.
        classes: K.

    Returns:
        ``gram [1, C+1, C+1]`` and ``cross [1, C+1, K]`` float64.
    """
    known = targets != IGNORED
    hot = F.one_hot(targets.masked_fill(~known, 0), classes).permute(0, 3, 1, 2).double() * known[:, None]
    share = F.adaptive_avg_pool2d(hot, (patches.size(2), patches.size(3))).permute(0, 2, 3, 1).flatten(0, 2)
    weight = share.sum(dim=1, keepdim=True)
    rows = patches.double().permute(0, 2, 3, 1).flatten(0, 2)
    rows = torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
    gram, cross = (rows * weight).T @ rows, rows.T @ share  # shares already include the weight
    return {"gram": gram[None].cpu().numpy(), "cross": cross[None].cpu().numpy()}


def fit(parts: Iterable[dict[str, np.ndarray]], l2: float) -> Decode:
    """Fits the probe on all parts' sums: ridge regression, penalty ``l2`` times the mean square of the features.

    Returns:
        A function from patch maps ``[B, C, h, w]`` to logits ``[B, K, h, w]``.
    """
    gram, cross = 0.0, 0.0
    for part in parts:  # in a fixed order, so that the result is repeatable
        gram, cross = gram + part["gram"].sum(0), cross + part["cross"].sum(0)
    gram, cross = np.asarray(gram), np.asarray(cross)
    penalty = l2 * np.trace(gram[:-1, :-1]) / max(len(gram) - 1, 1)
    ridge = np.diag(
        np.append(np.full(len(gram) - 1, penalty), 1e-9 * gram[-1, -1])
    )  # nearly no penalty on the constant
    solution = torch.from_numpy(np.linalg.lstsq(gram + ridge, cross, rcond=None)[0])

    def decode(patches: Tensor) -> Tensor:
        own = solution.to(patches.device, torch.float32)
        return torch.einsum("bchw,ck->bkhw", patches.float(), own[:-1]) + own[-1].view(1, -1, 1, 1)

    return decode
