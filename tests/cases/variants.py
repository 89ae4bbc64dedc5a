"""Options of architectures that take other ways through blocks and adapters, for the same laws as the architectures."""

from functools import partial

import beit_cases
import multihead_cases
import naflex_cases
import timm_cases
import torch
from architectures import IMAGES, cases, from_torchvision, from_transformers
from strategies import CLASS, STRATEGIES, StrategyCase

from tokengraph.testing import ModelCase

WIDE = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
EAGER = {"attn_implementation": "eager"}
TRANSFORMERS = {
    "ViT, dropout": ("ViTModel", {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1}),
    "ViT, eager attention": ("ViTModel", EAGER),
    "DINOv2, drop path": ("Dinov2Model", {"drop_path_rate": 0.2}),
    "DINOv2, SwiGLU": ("Dinov2Model", {"use_swiglu_ffn": True}),
}
VIT, EVA = ("qk_norm", "avg_with_class_token", "drop_path", "rectangle"), ("rope", "average", "inner_norm")
FOR_EACH_STRATEGY = (  # a model of each kind of block
    ("timm", "vit_base_patch16_224"),
    ("timm", "vit_small_patch16_rope_mixed_ape_224"),
    ("timm", "BEiT, timm_both"),
    ("timm", "NaFlexVit, class"),
    ("transformers", "DINOv3ViTModel"),
    ("transformers", "BEiT, data2vec_both"),
    ("transformers", "SigLIP 2, sdpa"),
    ("open_clip", "open_clip_scales"),
    ("torch", "own_sequence_first"),
)
NO_CLASS_TOKEN = {("transformers", "SigLIP 2, sdpa")}


def variants():
    """``{(library, options): ModelCase}``."""
    found = {}
    for kind in VIT:
        images = WIDE if kind == "rectangle" else IMAGES
        found["timm", f"ViT, {kind}"] = ModelCase(partial(timm_cases.make_vit, kind), (images,))
    for kind in EVA:
        found["timm", f"Eva, {kind}"] = ModelCase(partial(timm_cases.make_eva, kind), (IMAGES,))
    for kind in timm_cases.NAFLEX:
        patches = timm_cases.patches_of(width=16)
        make = partial(timm_cases.make_naflex, kind, proj_drop_rate=0.1, drop_path_rate=0.1)
        found["timm", f"NaFlexVit, {kind}"] = ModelCase(make, (patches.pop("patches"),), patches, one_graph=False)
    for kind in beit_cases.TIMM | beit_cases.TRANSFORMERS:
        library = "timm" if kind in beit_cases.TIMM else "transformers"
        found[library, f"BEiT, {kind}"] = ModelCase(partial(beit_cases.make, kind), (IMAGES,))
    for name, (model, options) in TRANSFORMERS.items():
        found["transformers", name] = ModelCase(partial(from_transformers, model, **options), (IMAGES,))
    for attention in ("sdpa", "eager"):
        make = partial(naflex_cases.make, attn_implementation=attention, attention_dropout=0.1)
        inputs = naflex_cases.batch(width=16)
        found["transformers", f"SigLIP 2, {attention}"] = ModelCase(make, (), inputs, one_graph=False)
    make = partial(from_torchvision, dropout=0.1, attention_dropout=0.1)
    found["torchvision", "dropout"] = ModelCase(make, (IMAGES,))
    for kind, (_, adapter) in multihead_cases.KINDS.items():
        if kind in ("own", "open_clip"):  # among the architectures
            continue
        library = "open_clip" if "open_clip" in kind else "torch"
        found[library, kind] = ModelCase(partial(multihead_cases.make, kind), (IMAGES,), adapter=adapter)
    return found


def strategy_cases():
    """``{(library, model, strategy): StrategyCase}``: models with every strategy but ToMe."""
    known, found = cases() | variants(), {}
    for name in FOR_EACH_STRATEGY:
        for strategy, setting in (STRATEGIES | ({} if name in NO_CLASS_TOKEN else CLASS)).items():
            if name in known and strategy != "tome":
                options = vars(known[name])
                if setting[0].ragged:  # a threshold's counts are read, which breaks the graph
                    options = options | {"one_graph": False}
                found[(*name, strategy)] = StrategyCase(**options, select=setting[0], schedule=setting[1])
    return found
