"""GTP on a classifier: draws its graph over the photograph, before the first block and as tokens leave."""

from pathlib import Path

import torch

import tokengraph as tg
from tokengraph.compat import timm
from tokengraph.io.photo import load_photo, normalize
from tokengraph.viz import plot_graph

LAYERS = [0, 4, 8, 12]
OUT = Path("outputs/gtp")

torch.manual_seed(0)
model = timm.create_model("deit_small_patch16_224").eval()  # add pretrained=True for real features
photo = load_photo(size=224)
images = normalize(photo, model)

with torch.no_grad():
    plain = model(images)
    with tg.attach(model, tg.GTP(graph="mixed", neighbors=4, alpha=0.1), schedule=8) as handle:
        logits = model(images)
        print("tokens after each block:", handle.trace.counts)
        print(f"cosine of the logits with the plain model's: {torch.cosine_similarity(plain, logits).item():.3f}")
        OUT.mkdir(parents=True, exist_ok=True)
        for layer in LAYERS:
            graph = handle.trace.graph(layer)  # a TokenGraph: the remaining tokens, and the edges between them
            scale = handle.trace.size(layer)
            print(
                f"after {layer:2d} blocks: {graph.num_nodes} tokens, {graph.num_edges} edges, scales {scale.sum():.1f}"
            )
            title = f"{graph.num_nodes} tokens after {layer} blocks"
            figure = plot_graph(photo, graph, distance=False, max_edges=None, title=title)
            figure.savefig(OUT / f"after_{layer:02d}_blocks.png", dpi=110)

before, after = handle.trace.graph(0), handle.trace.graph(12)
print(f"heaviest edge before {before.edge_weight.max():.4f}, after {after.edge_weight.max():.4f}: weights never change")
print(f"Pictures: {OUT}")
