"""Chooses where a model merges its tokens, and at which input size, from a few dozen images."""

from tokengraph.planning import attach as _attach  # noqa: F401  (registers the planner of plans)
from tokengraph.planning.facts import Figures, Target
from tokengraph.planning.planner import plan
from tokengraph.planning.record import Plan

__all__ = ["Figures", "Plan", "Target", "plan"]
