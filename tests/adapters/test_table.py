"""The README's table of strategies and families, made by trying each.

Print it: ``PYTHONPATH=tests/cases python tests/adapters/test_table.py``.
"""

from pathlib import Path

import pytest
import torch
from architectures import cases

import tokengraph as tg

README = Path(__file__).parents[2] / "README.md"
SETTINGS = {
    "AiluRus": (tg.AiluRus(), {1: 0.5}),
    "DPCKNN": (tg.DPCKNN(), {1: 0.5}),
    "DynamicViT": (tg.DynamicViT(layers=[1, 2]), None),
    "Expedite": (tg.Expedite(clusters=(2, 2)), {1: "cluster", 2: "reconstruct"}),
    "GridPool": (tg.GridPool(), {1: 0.5}),
    "GTP": (tg.GTP(), 3),
    "GTP, sparsity < 1": (tg.GTP(sparsity=0.8), 3),
    "Random": (tg.Random(), 3),
    "ToMe": (tg.ToMe(), 3),
    "TokenMigration": (tg.TokenMigration(), {1: 0.7, 3: "reconstruct"}),
    "TopK (class)": (tg.TopK(), 3),
    "TopK (norm)": (tg.TopK(score="norm"), 3),
}
REASONS = {  # words of the error: what the table says
    "class token": "no class token",
}
FAMILIES = {  # what the table says: a model of each kind
    "timm ViT": ("timm", "vit_base_patch16_224"),
    "timm GAP, SigLIP": ("timm", "vit_base_patch16_siglip_gap_224"),
    "timm Eva, rotary": ("timm", "vit_base_patch16_rope_224"),
    "BEiT, Data2Vec": ("transformers", "BeitModel"),
    "transformers ViT, DeiT, DINOv2, CLIP": ("transformers", "ViTModel"),
    "transformers DINOv3": ("transformers", "DINOv3ViTModel"),
    "transformers SigLIP": ("transformers", "SiglipVisionModel"),
    "NaFlex (SigLIP 2, timm)": ("transformers", "Siglip2VisionModel"),
    "torchvision, open_clip, your own": ("torchvision", "VisionTransformer (vit_b_16, ...)"),
}


def verdict(case, model, select, schedule):
    """``yes``, or why not."""
    try:
        with tg.attach(model, select, schedule, adapter=case.adapter) as handle, torch.no_grad():
            case.run(model)
            assert min(handle.trace.counts) < 16
    except ValueError as error:
        return next(reason for words, reason in REASONS.items() if words in str(error))
    return "yes"


def table():
    known = cases()
    models = [(known[name], known[name].make()) for name in FAMILIES.values()]
    rows = [["", *FAMILIES], ["---"] * (len(models) + 1)]
    for name, setting in SETTINGS.items():
        rows.append([name, *(verdict(*model, *setting) for model in models)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def test_the_readme_has_the_table_of_strategies_and_families():
    try:
        made = table()
    except (ImportError, RuntimeError) as error:  # RuntimeError: an older timm without one of the models
        pytest.skip(str(error))
    assert made in README.read_text(encoding="utf-8"), f"put this into the README:\n\n{made}"


def test_every_strategy_is_in_the_table():
    assert {type(select).__name__ for select, _ in SETTINGS.values()} == {c.__name__ for c in tg.registry().values()}


if __name__ == "__main__":
    print(table())
