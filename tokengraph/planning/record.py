"""``Plan``: where a model merges its tokens, at which input size, and what that was measured to cost."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from tokengraph.attach.plain import Attachment
from tokengraph.attach.planner import Standalone
from tokengraph.evaluate.settings import Setting
from tokengraph.planning.facts import Figures, PlannedSchedule, Target
from tokengraph.planning.files import json_of, read_plan, write_plan
from tokengraph.planning.table import table


@dataclass(frozen=True, repr=False)
class Plan(Standalone[Attachment]):
    """A plan of :func:`tokengraph.plan`, for :func:`tokengraph.attach`, :func:`tokengraph.evaluate` and files.

    ``attach(model, plan)`` takes no other argument. The model then scales its images to the plan's resolution by
    itself, so it takes the same images as before. ``print(plan)`` shows the table.

    Args:
        setting: Strategy, options, resolution and tokens removed in each block, for :func:`tokengraph.evaluate`.
        tokens: Patch tokens before the first block and after each.
        target: The model that it is for.
        preserve: What was kept: ``"class"``, ``"patches"``, ``"logits"`` or ``"features"``.
        budget: The budget's kind and value, ``{"cost": 0.5}``.
        predicted: Figures that the search predicted.
        measured: Figures on held-out images.
        sensitivity: For each strategy, the loss if half of the tokens merge in block 1, 2, ... alone; ``None``: not
            measured.
        notes: Remarks of the planner, such as why it changes nothing.
        seconds: How long planning took.
        lift: As for :func:`tokengraph.attach`.
        version: Version of tokengraph that made it.
        similarity: After each block, the plain model's mean cosine of a patch token with the token most similar to it.
    """

    HINT: ClassVar[str] = "A plan has its own; for lifted outputs attach plan.lifting()."

    setting: Setting
    tokens: tuple[int, ...]
    target: Target
    preserve: str = "class"
    budget: Mapping[str, float] = field(default_factory=dict)
    predicted: Figures = Figures()
    measured: Figures = Figures()
    sensitivity: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    lift: bool = False
    version: str = ""
    similarity: tuple[float, ...] = ()

    @property
    def plain(self) -> bool:
        """True if it changes nothing."""
        return self.setting.dense

    @property
    def schedule(self) -> PlannedSchedule:
        """The schedule for :func:`tokengraph.attach`."""
        return PlannedSchedule(self.tokens)

    def lifting(self) -> Plan:
        """Returns the plan with ``lift=True``: ``forward_features`` returns every input patch of the scaled image."""
        return replace(self, lift=True)

    def json(self) -> dict[str, Any]:
        """Returns the content of the plan's file."""
        return json_of(vars(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan as JSON, whole or not at all."""
        write_plan(vars(self), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads and validates a plan.

        Raises:
            ValueError: If it cannot be read: no file, no JSON, wrong types, another version of the format, unknown
                strategies or options, or token counts that do not fit each other or the model.
        """
        return cls(**read_plan(path))

    def __str__(self) -> str:
        return table(vars(self))

    def __repr__(self) -> str:
        return f"Plan({self.setting.name!r}, {self.target.name}, tokens={list(self.tokens)})"
