"""Measures the accuracy cost of strategies on real features, with weights and data from packages only."""
