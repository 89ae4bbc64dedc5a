"""Runs torchvision's ViT-B/16 with ToMe, 13 tokens fewer in every block; prints speedup and similarity.

Weights are random, so that nothing is downloaded; give ``weights="DEFAULT"`` for real ones.
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokengraph as tg
from tokengraph.compat import torchvision
from tokengraph.io.photo import load_photo, normalize


def run(model: nn.Module, images: Tensor) -> tuple[Tensor, float]:
    """Returns the output, and the best of three times."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        with torch.inference_mode():
            out = model(images)
        times.append(time.perf_counter() - start)
    return out, min(times)


torch.manual_seed(0)
model = torchvision.models.vit_b_16().eval()
model.heads = nn.Identity()  # returns features; torchvision initialises the head with zeros
images = normalize(load_photo(size=224), model).expand(4, -1, -1, -1)

plain, seconds = run(model, images)
print(f"plain: 196 tokens, {1000 * seconds:.0f} ms")
for prop_attn in ("log", "half-log", "none"):
    with tg.attach(model, "tome", 13, prop_attn=prop_attn) as handle:
        fewer, own = run(model, images)
    likeness = F.cosine_similarity(plain, fewer).mean().item()
    print(
        f"tome, prop_attn={prop_attn}: {handle.trace.counts[-1]} tokens, {1000 * own:.0f} ms, "
        f"{seconds / own:.2f} times as fast, cosine {likeness:.4f}"
    )
