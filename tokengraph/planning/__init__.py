"""Chooses where a model merges its tokens, and at which input size, from a few dozen images.

Start with ``planner``, which is ``tg.plan``.

| question | files |
|---|---|
| What is asked? | budget, space (sizes, counts and their costs), family (the strategies to try) |
| How is it found? | shapes (published schedules), similarity (of tokens, by block), explore (measures, proposes, |
| | fits again), curves (predicted loss), search (dynamic programming), refine (local search) |
| How long does it take? | clock (predicted), timed (budgets of time), pays (tables of where strategies save time) |
| What comes out? | record (``Plan``), facts (its parts), table, files (JSON), attach (puts a plan into a model) |
| How good are plans? | bench |
"""

from tokengraph.planning import attach as _attach  # noqa: F401  (registers the planner of plans)
from tokengraph.planning.facts import Figures, Target
from tokengraph.planning.planner import plan
from tokengraph.planning.record import Plan

__all__ = ["Figures", "Plan", "Target", "plan"]
