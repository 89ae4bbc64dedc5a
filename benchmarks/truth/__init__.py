"""What strategies cost in accuracy on real features: weights and data from packages alone, measured by tokengraph."""
