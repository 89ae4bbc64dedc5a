"""What a strategy costs in accuracy, in time and in multiply-adds, on a user's model and images.

Start with ``evaluate`` (labels or masks) or ``fidelity`` (no labels); both call ``run`` for outcomes and ``rows`` for
the report.

| question | files |
|---|---|
| Which model? | source (builds it for each input size), libraries (by name), own (a user's adapter), config (its |
| | preprocessing), resolution (another input size), forms (one model for each setting) |
| Which images? | images, folders, hub, transform, chunks |
| Which settings? | settings, grammar (as text), json_plans, controls |
| How is it run? | options, run, read, ranks (several processes), store (resumes), progress |
| How right is it? | evaluate, fidelity, compare, dense (masks), probe, patch_probe (backbones without a head), |
| | realign (maps features back), figures, statistics |
| How fast is it? | costs (multiply-adds), measure, timing, memory |
| What is written? | report, row, rows, facts, tables |
"""

from tokengraph.evaluate.config import DataConfig
from tokengraph.evaluate.images import Arrays
from tokengraph.evaluate.options import Options
from tokengraph.evaluate.source import Source

__all__ = ["Arrays", "DataConfig", "Options", "Source"]
