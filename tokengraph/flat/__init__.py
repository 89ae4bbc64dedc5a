"""How rows lie in memory: segments of flat tokens, padding, cached tables."""
