"""Learned parts: DynamicViT's prediction module, its keep decisions and their attention masks, and two-path layers."""

from tokengraph.attention.keep_mask import KeepMask, additive_mask, masked_attention, masked_softmax
from tokengraph.nn.decisions import gumbel_keep
from tokengraph.nn.gates import LinearGate, MlpGate
from tokengraph.nn.predictor import TokenPredictor
from tokengraph.nn.rates import Rates

__all__ = [
    "KeepMask",
    "LinearGate",
    "MlpGate",
    "Rates",
    "TokenPredictor",
    "additive_mask",
    "gumbel_keep",
    "masked_attention",
    "masked_softmax",
]
