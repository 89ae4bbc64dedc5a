"""Reductions beyond those of ``Assignment.reduce``."""
