"""Laws and helpers for tests of strategies and adapters, shipped so that users can check their own.

| laws of | files |
|---|---|
| strategies: ``check_select`` | select_laws (their list), choice_laws, map_laws, padding_laws, device_laws |
| models: ``check_model`` | model_laws (their list), anatomy_laws, meaning_laws, training_laws |
| attaching: ``check_attach`` | attach_laws |

``hold`` runs laws; ``model_case``, ``models`` and ``tokens`` make what they run over. ``ideal`` is the fastest that a
strategy could be, and ``launches`` counts the operations that a strategy adds.
"""

from tokengraph.testing.attach_laws import ATTACH_LAWS, AttachCase, check_attach
from tokengraph.testing.launches import Launches, launches
from tokengraph.testing.model_case import ModelCase
from tokengraph.testing.model_laws import MODEL_LAWS, check_model
from tokengraph.testing.models import tiny_vit
from tokengraph.testing.select_laws import SELECT_LAWS, check_select
from tokengraph.testing.tokens import corner_cases, make_tokens

__all__ = [
    "ATTACH_LAWS",
    "MODEL_LAWS",
    "SELECT_LAWS",
    "AttachCase",
    "Launches",
    "ModelCase",
    "check_attach",
    "check_model",
    "check_select",
    "corner_cases",
    "launches",
    "make_tokens",
    "tiny_vit",
]
