"""Token migration: redundant tokens skip the later blocks, and return from stored features."""

from tokengraph.select.migration.migration import TokenMigration

__all__ = ["TokenMigration"]
