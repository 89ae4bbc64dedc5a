"""Stored models of pruning methods, and the tokens that they keep."""

import json

from needs import library


def stored_model(v, **options):
    """The ViT whose weights lie in a file of vectors, without the method's own, and the file's settings."""
    how, size = json.loads(v["config"]), v["image"].size(-1)
    weights = {k[3:]: t for k, t in v.items() if k.startswith("sd/")}
    own = ("score_predictor", "selective_modules")
    model = library("timm").models.VisionTransformer(
        img_size=size, patch_size=how["patch"], embed_dim=weights["cls_token"].size(-1), depth=how["depth"],
        num_heads=how["heads"], mlp_ratio=2, num_classes=10, **options,
    ).eval()  # fmt: skip
    stock = {k: t for k, t in weights.items() if not k.startswith(own)}
    if "fc_norm.weight" in model.state_dict():
        stock = {k.replace("norm.", "fc_norm.") if k.startswith("norm.") else k: t for k, t in stock.items()}
    model.load_state_dict(stock, strict=True)
    return model, how


def kept_of(assignment, images):
    """The places of kept tokens in each image's current sequence, as sets."""
    kept = (assignment.cluster < assignment.num_clusters).view(images, -1)
    return [set(row.nonzero()[:, 0].tolist()) for row in kept]


def sets(rows):
    """Rows of ids as sets."""
    return [set(row.tolist()) for row in rows]


def checked(trace, v, images):
    """The number of tokens after each block is the stored one."""
    assert trace.counts[1:] == v["tokens"].tolist(), (trace.counts, v["tokens"].tolist())
