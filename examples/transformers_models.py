"""Hugging Face transformers: a classifier with fewer tokens, and a backbone whose maps keep their full size.

Weights are random, so that nothing is downloaded; use ``from_pretrained`` for real ones.
"""

import torch
import torch.nn.functional as F

import tokengraph as tg
from tokengraph.compat import transformers
from tokengraph.io.photo import load_photo, normalize

torch.manual_seed(0)
SIZES = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}

classifier = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES, num_labels=1000)).eval()
images = normalize(load_photo(size=224), classifier)
with torch.no_grad():
    plain = classifier(images).logits
    for strategy in ("tome", "topk", "gtp"):
        with tg.attach(classifier, strategy, 8) as handle:
            logits = classifier(images).logits
        likeness = F.cosine_similarity(plain, logits).item()
        counts = handle.trace.counts
        print(f"classifier, {strategy}: {counts[0]} -> {counts[-1]} tokens, cosine of the logits {likeness:.4f}")

config = transformers.Dinov2Config(
    hidden_size=192, num_hidden_layers=12, num_attention_heads=3, image_size=448, out_features=["stage6", "stage12"]
)
backbone = transformers.AutoBackbone.from_config(config).eval()  # segmenters and depth estimators use such backbones
images = normalize(load_photo(size=448), backbone)
with torch.no_grad():
    plain = backbone(images).feature_maps
    with tg.attach(backbone, tg.AiluRus(), {3: 0.25}) as handle:
        maps = backbone(images).feature_maps
for stage, a, b in zip(config.out_features, plain, maps, strict=True):
    likeness = F.cosine_similarity(a, b, dim=1).mean().item()
    print(f"backbone, {stage}: {handle.trace.counts[-1]} tokens, map {list(b.shape)}, cosine {likeness:.4f}")
