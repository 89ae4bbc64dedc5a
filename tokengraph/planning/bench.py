"""Measures what plans lose on images, each plan once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokengraph.attach.attach import attach
from tokengraph.evaluate.compare import counted, joined, measures, summary
from tokengraph.evaluate.costs import Anatomy, multiply_adds
from tokengraph.evaluate.read import Outputs, Reader
from tokengraph.planning.facts import Figures
from tokengraph.planning.record import Plan

Found = dict[str, np.ndarray]
WORST = 0.1  # weight of the worst images in a score
BEHIND = 1.03  # a plan whose score is this much above the best one's on the first batches is given up
TINY = 1e-12


def loss_of(found: Found, preserve: str) -> np.ndarray:
    """Returns the loss of each image: ``1 - cosine``, or the KL divergence for logits."""
    if preserve == "logits":
        return found["kl"]
    kinds = {"class": ("class",), "patches": ("patch",), "features": ("class", "patch")}[preserve]
    return np.mean([1 - found[f"{kind}_cosine"] for kind in kinds], axis=0)


def score_of(each: np.ndarray) -> float:
    """Returns the mean loss plus ``WORST`` times that of the worst tenth of the images, at least one."""
    count = max(1, round(0.1 * len(each)))
    return float(each.mean() + WORST * np.sort(each)[-count:].mean())


@dataclass
class Measured:
    """The outcome of a plan on a bench's images.

    Args:
        found: Measures of each image.
        counts: Mean patch tokens before the first block and after each.
        loss: Mean loss of what the bench preserves.
        cost: Multiply-adds as a share of the plain model's.
        each: The loss of each image that was run.
        whole: False if it was given up before the last batch; then the mean loss is an estimate.
    """

    found: Found
    counts: list[float]
    loss: float
    cost: float
    each: np.ndarray = field(default_factory=lambda: np.zeros(0))

    whole: bool = True

    @property
    def score(self) -> float:
        """What a search minimises: the mean loss, and a tenth of that of the worst tenth of the images."""
        if not len(self.each):
            return self.loss
        return score_of(self.each) * self.loss / max(float(self.each.mean()), TINY)  # an estimate if it is not whole


@dataclass
class Bench:
    """A model with images, and its plain outputs on them.

    Args:
        model: The model, plain and in eval mode.
        batches: Batches of images on the model's device.
        preserve: What the loss measures.
        body: The model's anatomy.
        memory: Outcomes of settings by name; another bench with the same model and images can begin with them.
    """

    model: nn.Module
    batches: Sequence[Tensor]
    preserve: str
    body: Anatomy
    memory: dict[str, Measured] = field(default_factory=dict)
    _dense: list[Outputs] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._dense = [self._read(Reader(self.model), batch) for batch in self.batches]
        trial = measures(self._dense[0], self._dense[0])
        key = {"class": "class_cosine", "patches": "patch_cosine", "logits": "kl", "features": "patch_cosine"}
        if key[self.preserve] not in trial:
            raise ValueError(
                f"Expected a model with {self.preserve} to preserve (got {type(self.model).__name__} without). "
                "A model without a head has no logits: use preserve='class'."
            )

    def run(self, plan: Plan) -> Measured:
        """Attaches a plan, runs every image and compares with the plain model.

        Cost: one run of every image under the plan, unless the memory has it.
        """
        return self.race(plan, None)

    def race(self, plan: Plan, best: Measured | None, *, first: bool = False) -> Measured:
        """Runs a plan batch by batch, and gives it up once it is behind the best one on the same images.

        The loss of a plan that was given up is that of the best one, times the ratio of both on the images so far:
        images differ much more than this ratio does.

        Args:
            plan: The plan.
            best: The best one, run on all images; ``None``: never gives up.
            first: Gives up after the first batch in any case, if there is a best one.
        """
        name = plan.setting.key
        known = self.memory.get(name)
        if known is None or not (known.whole or best is not None and (first or self._behind(known, best))):
            known = self.memory[name] = self._run(plan, best, first)
        each = loss_of(known.found, self.preserve)
        loss = float(each.mean())
        if not known.whole and best is not None:
            loss *= best.loss / max(float(best.each[: len(each)].mean()), TINY)
        return Measured(known.found, known.counts, loss, known.cost, each, known.whole)

    def _behind(self, known: Measured, best: Measured) -> bool:
        each = loss_of(known.found, self.preserve)
        return score_of(each) > BEHIND * score_of(best.each[: len(each)])

    def _run(self, plan: Plan, best: Measured | None, first: bool) -> Measured:
        parts, counts = [], []
        with attach(self.model, plan) as handle:
            reader = Reader(self.model, handle)
            for batch, dense in zip(self.batches, self._dense, strict=True):
                outputs = self._read(reader, batch)
                parts.append(measures(dense, outputs))
                assert outputs.counts is not None
                counts.append(outputs.counts)
                made = self._outcome(parts, counts, plan)
                if not made.whole and best is not None and (first or self._behind(made, best)):
                    break
        return made

    def _outcome(self, parts: list[Found], counts: list[Tensor], plan: Plan) -> Measured:
        tokens = counted(counts)
        return Measured(joined(parts), tokens, 0.0, self.cost(tokens, plan), whole=len(parts) == len(self.batches))

    def cost(self, tokens: Sequence[float], plan: Plan) -> float:
        """Returns the cost of token counts as a share of the plain model's."""
        whole = multiply_adds(self.body, [plan.target.patches] * (self.body.depth + 1))[0]
        return multiply_adds(self.body, tokens, plan.setting.reducing())[0] / whole

    def _read(self, reader: Reader, batch: Tensor) -> Outputs:
        with torch.inference_mode(False), torch.no_grad():
            return reader(batch)

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(len(batch) for batch in self.batches)


def figures(measured: Measured, times: Any = None) -> Figures:
    """Returns the figures of an outcome; ``times`` are plain and planned milliseconds of a batch."""
    found = {k: v for k, v in summary(measured.found).items() if k in Figures.__dataclass_fields__}
    count = len(next(iter(measured.found.values())))
    made = Figures(count, measured.cost, loss=measured.loss, **found)
    return made if times is None else Figures(**{**vars(made), "speedup": times[0] / times[1], "ms": times[1]})
