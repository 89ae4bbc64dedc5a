"""transformers: plain vision models (versions before 5.9, too), BEiT, images of any shape."""
