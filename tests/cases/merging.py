"""Stored models of the merging methods, and partitions compared without regard to their numbering."""

import json

from needs import library

SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "num_classes", "class_token")


def stored_model(v):
    """The ViT whose weights lie in a file of vectors, and the file's settings."""
    how = json.loads(v["config"])
    options = {k: how[k] for k in (*SIZES, "global_pool") if k in how}
    model = library("timm").models.VisionTransformer(**options).eval()
    model.load_state_dict({k[3:]: t for k, t in v.items() if k.startswith("sd/")}, strict=True)
    return model, how


def renumbered(labels):
    """Labels by first occurrence; -1, dropped, stays."""
    known = {}
    return [label if label < 0 else known.setdefault(label, len(known)) for label in labels]


def check_sources(trace, v, depth, *, prefix="", before=False):
    """Every input patch is in the token that the published code has it in, after each block (or before it).

    Where that has dropped a patch (-1), ours may have it anywhere.
    """
    for i in range(depth):
        source = trace.lineage(i + (not before)).source
        if source is None:
            labels = [list(range(trace.counts[0]))] * 2
        else:
            labels = source.cluster.masked_fill(source.cluster == source.num_clusters, -1).view(2, -1).tolist()
        for ours, theirs in zip(labels, v[f"{prefix}l{i}_source"].tolist(), strict=True):
            kept = [p for p, label in enumerate(theirs) if label >= 0]
            assert len(kept) >= trace.counts[i + (not before)]
            assert renumbered(ours[p] for p in kept) == renumbered(theirs[p] for p in kept), f"block {i}"


def within(cluster, images, keep):
    """Cluster numbers within each image, ``[B, N]``, of equal images."""
    import torch

    return cluster.view(images, -1) - torch.arange(images)[:, None] * keep
