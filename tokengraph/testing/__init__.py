"""What tests of strategies and adapters need; shipped, so that users can hold their own to the same laws."""

from tokengraph.testing.laws import SELECT_LAWS, check_select
from tokengraph.testing.model_case import ModelCase
from tokengraph.testing.model_laws import MODEL_LAWS, check_model
from tokengraph.testing.models import tiny_vit
from tokengraph.testing.tokens import corner_cases, make_tokens

__all__ = [
    "MODEL_LAWS",
    "SELECT_LAWS",
    "ModelCase",
    "check_model",
    "check_select",
    "corner_cases",
    "make_tokens",
    "tiny_vit",
]
