"""Makes a graph of a photograph's tokens and coarsens it; then runs a faster ViT with full-resolution output."""

import torch

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.io.photo import load_photo, normalize

model = timm.create_model("vit_small_patch16_224", num_classes=0).eval()  # add pretrained=True for real features
images = normalize(load_photo(size=224), model)

graph = tg.TokenGraph.from_model(model, images, layer=2).connect_knn(8)  # a PyG Data: 196 tokens, 1568 edges
coarse, assignment = tg.coarsen(graph, "dpc-knn", 0.25)  # 49 tokens; assignment.lift goes back to 196
print(graph, coarse, assignment.lift(coarse.x).shape, sep="\n")

with torch.no_grad(), tg.attach(model, tg.AiluRus(), {2: 0.25}) as handle:  # keeps a quarter after two blocks
    features = model.forward_features(images)
    print(handle.trace.counts)
    print(features.shape, "->", handle.trace.as_map(features).shape)
