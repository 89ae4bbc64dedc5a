"""Computes scores, intervals and paired differences from stored outcomes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tokengraph.evaluate.compare import joined, summary
from tokengraph.evaluate.dense import mean_iou
from tokengraph.evaluate.images import Images
from tokengraph.evaluate.options import Options
from tokengraph.evaluate.probe import Protocol, folds_of
from tokengraph.evaluate.run import DENSE, Found
from tokengraph.evaluate.statistics import Difference, Statistic, compare, interval, mcnemar, mean_of, resample
from tokengraph.evaluate.store import Store


@dataclass(frozen=True)
class Score:
    """One figure of a setting over a set, as a function of image weights, from which intervals follow.

    Args:
        of: The figure under weights of images.
        right: True for each correct image, for McNemar's test; ``None`` for other figures.
    """

    of: Statistic
    right: np.ndarray | None = None


class Outcomes:
    """Stored outcomes of a set.

    Args:
        store: The store that has them.
        part: Name of the set.
        images: The set.
        chunks: Its number of chunks.
    """

    def __init__(self, store: Store, part: str, images: Images, chunks: int) -> None:
        self.store, self.part, self.images, self.chunks = store, part, images, chunks

    def of(self, setting: str) -> Found:
        """Returns a setting's outcomes of all readable images, in order.

        Raises:
            ValueError: If some are missing, because another process writes to another folder.
        """
        missing = [c for c in range(self.chunks) if not self.store.has(self.part, setting, c)]
        if missing:
            raise ValueError(
                f"Expected outcomes of {setting!r} for all {self.chunks} chunks in {str(self.store.folder)!r} "
                f"(got none for {len(missing)}). Processes of one run need one folder that all of them see."
            )
        parts = (self.store.load(self.part, setting, c) for c in range(self.chunks))
        return joined([p for p in parts if len(p["index"])])

    @cached_property
    def skipped(self) -> list[tuple[str, str]]:
        """Returns unreadable images with the reason."""
        found = []
        for number in range(self.chunks):
            part = self.store.load(self.part, DENSE.key, number)
            found += [(self.images.key(int(i)), str(w)) for i, w in zip(part["bad"], part["why"], strict=True)]
        return found

    @cached_property
    def dense(self) -> Found:
        """The dense model's outcomes."""
        return self.of(DENSE.key)

    @cached_property
    def labels(self) -> np.ndarray | None:
        """Classes of the readable images."""
        if not self.images.has_labels or "index" not in self.dense:
            return None
        return np.array([self.images.label(int(i)) for i in self.dense["index"]], dtype=np.int64)


class Scorer:
    """Computes figures of settings over one set, and their differences from the dense model's.

    Args:
        outcomes: Outcomes of the set.
        options: Seeds, samples and the probe's parameters.
        probe: ``"linear"``, ``"knn"`` or ``None``.
        train: Outcomes of the probe's training images; ``None`` uses folds of the set itself.
    """

    def __init__(
        self, outcomes: Outcomes, options: Options, probe: str | None = None, train: Outcomes | None = None
    ) -> None:
        self.outcomes, self.options, self.train = outcomes, options, train
        self.draws = resample(len(outcomes.dense["index"]), options.resamples, options.seed)
        self.protocol = None if probe is None else self._protocol(probe)
        self.dense = self._scores(DENSE.key, outcomes.dense)

    def _protocol(self, kind: str) -> Protocol:
        source = self.train or self.outcomes
        found, labels = source.dense, source.labels
        if labels is None or "pooled" not in found:
            raise ValueError("Expected labels and a supported model for a probe (got none).")
        if len(np.unique(labels)) < 2:
            raise ValueError("Expected at least two classes among the probe's training images (got one).")
        test = self.outcomes.labels
        classes = int(max(labels.max(), test.max() if test is not None and len(test) else 0)) + 1
        fold = folds_of(labels, self.options.folds, self.options.seed) if self.train is None else None
        numbers: dict[str, Any] = {"l2": self.options.l2, "neighbors": self.options.neighbors, "classes": classes}
        numbers["map_images"] = self.options.map_images
        return Protocol(kind, found["pooled"], labels, fold, **numbers)

    def _scores(self, name: str, found: Found) -> dict[str, Score]:
        labels, scores = self.outcomes.labels, {}
        if labels is not None and "top" in found and self.protocol is None:
            right = found["top"] == labels[:, None]
            scores["top1"] = _of_right(right[:, 0])
            if found["top"].shape[1] >= 5:
                scores["top5"] = _of_right(right.any(axis=1))
        scored = self.outcomes.images.scored
        chosen = None if scored is None else list(scored)
        for start, end in (("", ""), ("refit_", "_refit")):
            if f"{start}inter" in found:
                inter, union, edge_inter, edge_union = (
                    found[f"{start}{key}"] for key in ("inter", "union", "edge_inter", "edge_union")
                )
                scores[f"miou{end}"] = _of_overlaps(inter, union, chosen)
                scores[f"biou{end}"] = _of_overlaps(edge_inter, edge_union, chosen)
        if self.protocol is not None and labels is not None and "pooled" in found:
            scores |= self._probed(self.protocol, name, found, labels)
        return scores

    def _probed(self, protocol: Protocol, name: str, found: Found, labels: np.ndarray) -> dict[str, Score]:
        scores, features = {}, found["pooled"]
        train = features if self.train is None else self.train.of(name)["pooled"]
        if features.shape[1] == protocol.dense.shape[1]:
            scores["probe_as_is"] = _of_right(protocol.answers(features)[:, 0] == labels)
            if protocol.can_map:
                mapped = features if name == DENSE.key else protocol.mapped(features, train)
                scores["probe_mapped"] = _of_right(protocol.answers(mapped)[:, 0] == labels)
        scores["probe_refit"] = _of_right(protocol.answers(features, train)[:, 0] == labels)
        return scores

    def figures(self, key: str) -> tuple[dict[str, float], dict[str, tuple[float, float]], dict[str, Difference]]:
        """Returns a setting's figures, their intervals, and their paired differences from the dense model's."""
        dense = key == DENSE.key
        found = self.outcomes.dense if dense else self.outcomes.of(key)
        scores = self.dense if dense else self._scores(key, found)
        once = np.ones((1, self.draws.shape[1]))
        metrics = {k: float(s.of(once)[0]) for k, s in scores.items()}
        intervals = {k: interval(s.of, self.draws) for k, s in scores.items()}
        for part in ("agree", "class_cosine", "patch_cosine"):
            if part in found:
                intervals["agreement" if part == "agree" else part] = interval(mean_of(found[part]), self.draws)
        both = {k: (self.dense[k], s) for k, s in scores.items() if k in self.dense and not dense}
        differences = {k: _difference(a, b, self.draws) for k, (a, b) in both.items()}
        return metrics | summary(found), intervals, differences

    def counts(self, key: str) -> list[float] | None:
        """Returns mean patch tokens an image before the first block and after each; ``None`` if unknown."""
        found = self.outcomes.dense if key == DENSE.key else self.outcomes.of(key)
        return found["counts"].astype(np.float64).mean(axis=0).tolist() if "counts" in found else None


def _difference(dense: Score, other: Score, draws: np.ndarray) -> Difference:
    p = None if dense.right is None or other.right is None else mcnemar(dense.right, other.right)
    return compare(dense.of, other.of, draws, p)


def _of_right(right: np.ndarray) -> Score:
    return Score(mean_of(right), right)


def _of_overlaps(inter: np.ndarray, union: np.ndarray, scored: list[int] | None) -> Score:
    a, b = inter.astype(np.float64), union.astype(np.float64)
    return Score(lambda weights: mean_iou(weights @ a, weights @ b, scored))


def check_labels(images: Images, head: int | None) -> None:
    """Checks that the classes of images are those of the model's head.

    Raises:
        ValueError: If the head and the set have different numbers of classes, or a label is out of range.
    """
    if head is None:
        return
    if images.classes is not None:
        if (classes := len(images.classes)) == head:
            return
    elif (classes := 1 + max(images.label(i) for i in range(len(images)))) <= head:
        return
    empty = "".join(f" {note[0].upper()}{note[1:]}." for note in images.notes if "holds no image" in note)
    raise ValueError(
        f"Expected images of the head's {head} classes (got {classes} classes).{empty} Number the folders by a "
        "file (synsets=, --synsets FILE), say how many classes the checkpoint's head has (num_classes=, --num-classes "
        "N), fit a probe (probe='linear', --probe linear), or ignore labels (find_images(root, labels='none'), "
        "--labels none)."
    )
