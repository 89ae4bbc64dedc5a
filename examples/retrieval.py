"""Image retrieval by features of a DINOv2-style model, with half of the tokens.

The index has nine photographs that scikit-image ships; each query is a mirrored crop of one. Weights are random, so
that nothing is downloaded, and the features describe only colours and textures. Add ``pretrained=True`` for real ones.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.io.photo import find_photo, load_photo, normalize

NAMES = "astronaut.png brick.png chelsea.png coffee.png coins.png grass.png gravel.png rocket.jpg retina.jpg".split()
FOLDER = find_photo().parent


def embed(model: nn.Module, images: Tensor) -> Tensor:
    """Returns one unit vector for each image: class token and mean of the patches, as usual for DINOv2."""
    tokens = model.forward_features(images)
    prefix = model.num_prefix_tokens
    return F.normalize(torch.cat([tokens[:, 0], tokens[:, prefix:].mean(dim=1)], dim=1), dim=1)


def photos(model: nn.Module, files: list[Path]) -> tuple[Tensor, Tensor]:
    """Returns the photographs, and a mirrored crop of each."""
    whole = torch.cat([normalize(load_photo(file, size=224), model) for file in files])
    crop = F.interpolate(whole[:, :, 28:196, 28:196], size=(224, 224), mode="bilinear").flip(3)
    return whole, crop


torch.manual_seed(0)
model = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=224, num_classes=0).eval()
whole, crop = photos(model, [FOLDER / name for name in NAMES])
with torch.inference_mode():
    index, queries = embed(model, whole), embed(model, crop)
    found = (queries @ index.T).argmax(dim=1)
    print(f"plain: 256 tokens, {(found == torch.arange(len(NAMES))).sum()} of {len(NAMES)} photographs found")
    for strategy, schedule in (("tome", {3: 0.5}), ("ailurus", {3: 0.5}), ("gtp", 10)):
        with tg.attach(model, strategy, schedule, lift=True) as handle:  # lift: the mean runs over all patches
            fewer = embed(model, crop)  # the index still has plain features
        found = (fewer @ index.T).argmax(dim=1)
        likeness = F.cosine_similarity(fewer, queries).mean().item()
        print(
            f"{strategy}: {handle.trace.counts[-1]} tokens, {(found == torch.arange(len(NAMES))).sum()} of "
            f"{len(NAMES)} photographs found, cosine to the plain features {likeness:.4f}"
        )
