"""Computes dense features from few tokens: coarsens after two blocks, and returns full [B, C, H, W] maps."""

import time

import torch
import torch.nn.functional as F

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.io.photo import load_photo, normalize

LAYERS = [3, 7, 11]


def run(model: torch.nn.Module, images: torch.Tensor) -> tuple[list[torch.Tensor], float]:
    """Returns feature maps after the blocks in LAYERS, for a segmenter's neck, and the best of three times."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.no_grad():
            maps = model.forward_intermediates(images, indices=LAYERS, output_fmt="NCHW", intermediates_only=True)
        times.append(time.perf_counter() - start)
    return maps, min(times)


torch.manual_seed(0)
model = timm.create_model("vit_tiny_patch16_224", img_size=384, num_classes=0).eval()  # add pretrained=True
images = normalize(load_photo(size=384), model)

full, seconds = run(model, images)
print(f"plain: {1000 * seconds:.0f} ms, maps {[list(m.shape) for m in full]}")

for keep in (0.5, 0.25, 0.1):
    with tg.attach(model, tg.AiluRus(), {2: keep}) as handle:
        lifted, own = run(model, images)
        kept = handle.trace.counts[-1]
    likeness = ", ".join(f"{F.cosine_similarity(a, b, dim=1).mean():.3f}" for a, b in zip(full, lifted, strict=True))
    print(f"{kept} of {24 * 24} tokens: {1000 * own:.0f} ms, maps {list(lifted[-1].shape)}, cosine by layer {likeness}")
