"""What a strategy costs in accuracy, in time and in multiply-adds, on a user's model and images."""

from tokengraph.evaluate.config import DataConfig
from tokengraph.evaluate.images import Arrays
from tokengraph.evaluate.options import Options
from tokengraph.evaluate.source import Source

__all__ = ["Arrays", "DataConfig", "Options", "Source"]
