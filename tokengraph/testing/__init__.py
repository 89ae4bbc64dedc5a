"""What tests of strategies and adapters need; shipped, so that users can hold their own to the same laws."""

from tokengraph.testing.models import tiny_vit

__all__ = ["tiny_vit"]
