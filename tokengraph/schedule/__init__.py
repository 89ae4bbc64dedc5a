"""Schedules: the number of tokens after each block. The functions return rules for ``attach``."""

from tokengraph.schedule.around import tokens_around
from tokengraph.schedule.budget import tokens_to_keep
from tokengraph.schedule.counts import RECONSTRUCT, Schedule, returning, tokens_per_layer
from tokengraph.schedule.idle import warn_of_idle
from tokengraph.schedule.presets import EViT, evit
from tokengraph.schedule.rules import Relative, constant, linear, powers, ratio, relative
from tokengraph.schedule.sparing import counts_ahead, sparing_last

__all__ = [
    "RECONSTRUCT",
    "EViT",
    "Relative",
    "Schedule",
    "constant",
    "counts_ahead",
    "evit",
    "linear",
    "powers",
    "ratio",
    "relative",
    "returning",
    "sparing_last",
    "tokens_around",
    "tokens_per_layer",
    "tokens_to_keep",
    "warn_of_idle",
]
