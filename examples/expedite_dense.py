"""Expedite on a dense model: draws features before the clusters, the clusters, and features after reconstruction."""

from pathlib import Path

import torch
import torch.nn.functional as F

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.io.photo import load_photo, normalize
from tokengraph.viz import plot_clusters, plot_features

OUT = Path("outputs/expedite")
GRID, CLUSTERS = (32, 32), (16, 16)

torch.manual_seed(0)
model = timm.create_model("vit_small_patch16_384", img_size=512, num_classes=0).eval()  # add pretrained=True
photo = load_photo(size=512)
images = normalize(photo, model)

with torch.no_grad():
    plain, before = model.forward_features(images), tg.TokenGraph.from_model(model, images, layer=4)
    # After 4 blocks 1,024 tokens become 256 clusters; after 10 blocks every patch is restored, for the last two blocks.
    # "auto" sets the temperature from the features, as these weights are random; released models tune a fixed one.
    select = tg.Expedite(clusters=CLUSTERS, inv_temperature="auto")
    with tg.attach(model, select, {4: "cluster", 10: "reconstruct"}) as handle:
        features = model.forward_features(images)
        print("tokens after each block:", handle.trace.counts)
        clusters = handle.trace.source(6)  # a SoftAssignment: weighted edges from tokens to clusters
        dense = handle.trace.lift(torch.randn(1, 256, 150), layer=6)  # any tensor of the clusters, here class logits
        print(f"{clusters.token.numel()} edges, not {1024 * 256}; logits back at {list(dense.shape)}")

# Lifts the clusters' features; for comparison, also copies the mean of each cell to its tokens.
x = before.x[None]
assignment = tg.expedite(x, GRID, CLUSTERS, inv_temperature="auto")
soft = assignment.lift(assignment.reduce(x[0])[0])
cells = F.interpolate(F.adaptive_avg_pool2d(x.transpose(1, 2).unflatten(2, GRID), CLUSTERS), GRID)[0].flatten(1).T
for name, back in (("clustered and reconstructed", soft), ("pooled and copied back", cells)):
    print(f"{name}: relative error {((back - x[0]).norm() / x[0].norm()).item():.3f}")
likeness = F.cosine_similarity(plain[:, 1:], features[:, 1:], dim=2).mean().item()
print(f"cosine of the final features with the plain model's: {likeness:.3f}")

OUT.mkdir(parents=True, exist_ok=True)
plot_clusters(photo, {"clusters": assignment}, GRID).savefig(OUT / "clusters.png", dpi=110)
maps = {"before": x[0], "clusters, reconstructed": soft, "plain model, end": plain[0, 1:], "end": features[0, 1:]}
plot_features(photo, {k: maps[k] for k in ("before", "clusters, reconstructed")}, GRID).savefig(
    OUT / "middle.png", dpi=110
)
plot_features(photo, {k: maps[k] for k in ("plain model, end", "end")}, GRID).savefig(OUT / "end.png", dpi=110)
print(f"Pictures: {OUT}")
