"""timm: plain vision transformers, EVA and rotary models, BEiT, images of any shape."""
