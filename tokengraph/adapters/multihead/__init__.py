"""Blocks over ``nn.MultiheadAttention``: torchvision, open_clip, a model of your own."""
