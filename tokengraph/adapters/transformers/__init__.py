"""transformers: plain vision models of today and before 5.9, BEiT, images of any shape."""
