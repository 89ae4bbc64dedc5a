"""Backbones that no library has: Fast-iTPN and its pyramid."""

from tokengraph.models.fast_itpn import (
    FastITPN,
    fast_itpn_base,
    fast_itpn_large,
    fast_itpn_small,
    fast_itpn_tiny,
)
from tokengraph.models.gathering import TokenGathering
from tokengraph.models.gathering_graph import edge_attention, gathering_edges
from tokengraph.models.main_stage import TokenRecord
from tokengraph.models.pyramid import FastITPNPyramid, fast_itpn_pyramid
from tokengraph.models.registration import register_if_imported, register_with_timm
from tokengraph.select.migration.migration import TokenMigration

__all__ = [
    "FastITPN",
    "FastITPNPyramid",
    "TokenGathering",
    "TokenMigration",
    "TokenRecord",
    "edge_attention",
    "fast_itpn_base",
    "fast_itpn_large",
    "fast_itpn_pyramid",
    "fast_itpn_small",
    "fast_itpn_tiny",
    "gathering_edges",
    "register_with_timm",
]

register_if_imported()
