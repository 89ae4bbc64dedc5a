"""Token migration: redundant tokens leave the blocks, and come back from a table."""

from tokengraph.select.migration.migration import TokenMigration

__all__ = ["TokenMigration"]
