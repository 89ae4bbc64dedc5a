"""Deterministic probes for backbones without a head, linear (LBFGS) and nearest neighbours, and their protocols."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokengraph.evaluate.realign import FEWEST, realign

PROBES = ("linear", "knn")
TEMPERATURE = 0.07  # temperature of neighbours' votes, as published for DINO


def probe(
    kind: str, train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, l2: float, neighbors: int, classes: int
) -> np.ndarray:
    """Fits on ``train [n, C]`` with ``labels [n]`` and gives the classes of ``test [m, C]`` by falling score.

    ``"linear"``: multinomial logistic regression on features standardised by the training set, mean cross-entropy plus
    ``l2 / 2`` times the squared weights, LBFGS from zero in float64. ``"knn"``: votes of the nearest by cosine,
    weighted by ``exp(cosine / 0.07)``.

    Returns:
        ``[m, min(5, classes)]`` class numbers; ties go to the lower.

    Raises:
        ValueError: For another kind.
    """
    if kind not in PROBES:
        raise ValueError(f"Expected probe to be one of {', '.join(PROBES)} (got {kind!r}).")
    x, y, z = torch.from_numpy(train).double(), torch.from_numpy(labels).long(), torch.from_numpy(test).double()
    if kind == "knn":
        scores = _votes(x, y, z, neighbors, classes)
    else:
        mean, std = x.mean(0), x.std(0, unbiased=False).clamp_min(1e-8)
        weight, bias = fit_linear((x - mean) / std, y, classes, l2)
        scores = (z - mean) / std @ weight + bias
    return scores.argsort(dim=1, descending=True, stable=True)[:, :5].numpy()


def fit_linear(x: Tensor, y: Tensor, classes: int, l2: float) -> tuple[Tensor, Tensor]:
    """Fits multinomial logistic regression on ``x [n, C]`` float64; returns weights ``[C, K]`` and bias ``[K]``."""
    weight = torch.zeros(x.size(1), classes, dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=200, history_size=10, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)  # type: ignore[arg-type]
    return weight.detach(), bias.detach()


def _votes(x: Tensor, y: Tensor, z: Tensor, neighbors: int, classes: int) -> Tensor:
    cosine = F.normalize(z, dim=1) @ F.normalize(x, dim=1).T
    near = cosine.argsort(dim=1, descending=True, stable=True)[:, :neighbors]
    weight = (cosine.gather(1, near) / TEMPERATURE).exp()
    return torch.zeros(len(z), classes, dtype=z.dtype).scatter_add_(1, y[near], weight)


def folds_of(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Returns the fold of each image, ``[N]``, with classes spread evenly.

    Raises:
        ValueError: If there are fewer images than folds.
    """
    if len(labels) < folds:
        raise ValueError(f"Expected at least {folds} images for {folds} folds (got {len(labels)}). Give train images.")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold = np.empty(len(labels), dtype=np.int64)
    fold[order] = np.arange(len(labels)) % folds
    return fold


class Protocol:
    """A probe on stored features by three protocols.

    Fitted once on dense features; the same, for features that :func:`~tokengraph.evaluate.realign.realign` maps back to
    dense ones without labels; or fitted again for each setting.

    Args:
        kind: ``"linear"`` or ``"knn"``.
        dense: Dense features that probes are fitted on, ``[n, C]``.
        labels: Their classes, ``[n]``.
        fold: The fold of each image, if training and test images are the same; otherwise ``None``.
        l2: Weight decay of the linear probe.
        neighbors: Neighbours of the nearest-neighbour probe.
        classes: Number of classes.
        map_images: The most images that a map of features is fitted on; of more it takes evenly spaced ones.
    """

    def __init__(
        self,
        kind: str,
        dense: np.ndarray,
        labels: np.ndarray,
        fold: np.ndarray | None,
        *,
        l2: float,
        neighbors: int,
        classes: int,
        map_images: int = 2048,
    ) -> None:
        self.map_images = map_images
        self.kind, self.dense, self.labels, self.fold = kind, dense, labels, fold
        self.how = {"l2": l2, "neighbors": neighbors, "classes": classes}

    def answers(self, test: np.ndarray, train: np.ndarray | None = None) -> np.ndarray:
        """Returns the likeliest classes ``[m, 5]`` of ``test [m, C]`` features.

        Args:
            test: Features of a setting; with folds, of the same images as the training features.
            train: Features to fit on; ``None`` uses the probe on dense features.
        """
        source = self.dense if train is None else train
        if self.fold is None:
            return probe(self.kind, source, self.labels, test, **self.how)  # type: ignore[arg-type]
        found = np.zeros((len(test), min(5, self.how["classes"])), dtype=np.int64)
        for number in np.unique(self.fold):
            out = self.fold == number
            found[out] = probe(self.kind, source[~out], self.labels[~out], test[out], **self.how)  # type: ignore[arg-type]
        return found

    @property
    def can_map(self) -> bool:
        """Whether enough images are left to fit a map on."""
        if self.fold is None:
            return len(self.dense) >= FEWEST
        return bool(len(self.fold) - np.bincount(self.fold).max() >= FEWEST)

    def mapped(self, test: np.ndarray, train: np.ndarray | None = None) -> np.ndarray:
        """Returns ``test [m, C]`` mapped to dense features without labels, for :meth:`answers`.

        Args:
            test: Features of a setting; with folds, of the same images as the training features.
            train: The setting's features of the training images; with folds ``None``: a map is fitted on the images of
                the other folds.

        Raises:
            ValueError: If too few images are left to fit on.
        """
        if self.fold is None:
            assert train is not None
            return self._mapped(train, self.dense, test)
        found = np.empty(test.shape, dtype=np.float64)
        for number in np.unique(self.fold):
            out = self.fold == number
            found[out] = self._mapped(test[~out], self.dense[~out], test[out])
        return found

    def _mapped(self, coarse: np.ndarray, dense: np.ndarray, test: np.ndarray) -> np.ndarray:
        some = np.linspace(0, len(coarse) - 1, min(self.map_images, len(coarse))).round().astype(int)
        fit = realign(torch.from_numpy(coarse[some]).double(), torch.from_numpy(dense[some]).double())
        return fit(torch.from_numpy(test).double()).numpy()
