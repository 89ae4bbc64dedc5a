"""Density peaks: DPC-KNN and AiluRus."""

from tokengraph.select.peaks.ailurus import AiluRus
from tokengraph.select.peaks.dpc_knn import DPCKNN

__all__ = ["AiluRus", "DPCKNN"]
