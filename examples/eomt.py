"""EoMT of transformers, small and trained for minutes on drawn scenes (see dense_scenes.py), with fewer tokens.

Queries join the patches two layers before the end, where masks need the patch grid; every strategy works in the layers
before, and `attach` brings all patches back in front of the queries. Needs the extra transformers, and scipy.

    python examples/eomt.py        (--quick: a few steps, to see it run)
"""

from typing import Any

import torch
import torch.nn.functional as F
from dense_compare import Meter, compare, effort, slide, ways
from dense_scenes import KINDS, Scenes, draw_scenes, mean_iou, train
from torch import Tensor

from tokengraph.compat import transformers

SIDE, PATCH, DEPTH, LAST = 128, 8, 8, 2  # the last layers have the queries


def make_model() -> Any:
    """An EoMT of random weights."""
    sizes = {"hidden_size": 96, "num_hidden_layers": DEPTH, "num_attention_heads": 3, "num_blocks": LAST}
    maps = {"image_size": SIDE, "patch_size": PATCH, "num_upscale_blocks": 1, "num_queries": 12}
    kinds = {"id2label": dict(enumerate(KINDS)), "label2id": {kind: i for i, kind in enumerate(KINDS)}}
    return transformers.EomtForUniversalSegmentation(transformers.EomtConfig(**sizes, **maps, **kinds))


def loss(model: Any, scenes: Scenes) -> Tensor:
    """The model's own loss, which matches queries and masks; a mask for each kind of pixel in the image."""
    present = [labels.unique() for labels in scenes.labels]
    masks = [(labels == kinds[:, None, None]).float() for labels, kinds in zip(scenes.labels, present, strict=True)]
    return model(scenes.images * 2 - 1, mask_labels=masks, class_labels=present).loss


def predict(model: Any, images: Tensor) -> Tensor:
    """Scores of each kind for each pixel, ``[B, K, H, W]``: the queries' masks, weighted by their kinds."""
    out = model(images * 2 - 1)
    kinds = out.class_queries_logits.softmax(dim=2)[..., :-1]
    scores = torch.einsum("bqk,bqhw->bkhw", kinds, out.masks_queries_logits.sigmoid())
    return F.interpolate(scores, images.shape[2:], mode="bilinear")


def main() -> None:
    steps, rounds, count = effort(__doc__, 12)
    torch.manual_seed(0)
    model = make_model()
    train(model, lambda scenes: loss(model, scenes), steps, (SIDE, SIDE), 1e-3)
    model.attn_mask_probs.zero_()  # as after EoMT's training: no masks in attention
    scenes = draw_scenes(count, (128, 224), torch.Generator().manual_seed(1), shapes=7)  # two windows each
    ahead = DEPTH - LAST
    compare(
        model,
        Meter(model.embeddings, model.layers[ahead - 1]),
        ways(2, ahead, (11, 11)),
        lambda: slide(lambda images: predict(model, images), scenes.images, SIDE, 96).argmax(dim=1),
        lambda predicted: mean_iou(predicted, scenes.labels),
        rounds,
    )


if __name__ == "__main__":
    main()
