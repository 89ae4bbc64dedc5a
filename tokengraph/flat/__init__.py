"""Memory layout of token rows: sums over segments, padding, cached tables."""
