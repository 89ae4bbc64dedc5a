"""The README's table of strategies and families, made by trying each.

Print it: ``python tests/adapters/test_table.py``.
"""

from pathlib import Path

import pytest
import torch

import tokengraph as tg
from tokengraph.testing import tiny_vit

README = Path(__file__).parents[2] / "README.md"
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
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


OWN = tg.adapters.EncoderLayers("encoder", num_prefix=1, grid=(4, 4))


class Own(torch.nn.Module):
    """An encoder of a user, over 16 patches and a class token."""

    def __init__(self):
        super().__init__()
        layer = torch.nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.encoder = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, images):
        patches = images.view(2, 3, 16, 64)[..., :32].sum(dim=1)
        return self.encoder(torch.cat([patches.mean(dim=1, keepdim=True), patches], dim=1))


def families():
    from tokengraph.compat import timm, torchvision, transformers

    hf = SIZES | {"image_size": 32, "patch_size": 8}
    eva = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
    return {
        "timm ViT": tiny_vit(),
        "timm GAP, SigLIP": tiny_vit(class_token=False, global_pool="avg"),
        "timm Eva, rotary": timm.models.eva.Eva(**eva, use_rot_pos_emb=True).eval(),
        "transformers ViT, DeiT, DINOv2, CLIP": transformers.ViTModel(transformers.ViTConfig(**hf)).eval(),
        "transformers DINOv3": transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**hf)).eval(),
        "transformers SigLIP": transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**hf)).eval(),
        "torchvision ViT": torchvision.models.VisionTransformer(32, 8, 3, 4, 32, 64).eval(),
        "your own nn.TransformerEncoder": Own().eval(),
    }


def verdict(model, select, schedule):
    """``yes``, or why not."""
    images = torch.randn(2, 3, 32, 32)
    try:
        adapter = OWN if isinstance(model, Own) else None
        with tg.attach(model, select, schedule, adapter=adapter) as handle, torch.no_grad():
            model(images)
            assert min(handle.trace.counts) < 16
    except ValueError as error:
        return next(reason for words, reason in REASONS.items() if words in str(error))
    return "yes"


def table():
    models = families()
    rows = [["", *models], ["---"] * (len(models) + 1)]
    for name, setting in SETTINGS.items():
        rows.append([name, *(verdict(model, *setting) for model in models.values())])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def test_the_readme_has_the_table_of_strategies_and_families():
    try:
        made = table()
    except ImportError as error:
        pytest.skip(str(error))
    assert made in README.read_text(encoding="utf-8"), f"put this into the README:\n\n{made}"


def test_every_strategy_is_in_the_table():
    assert {type(select).__name__ for select, _ in SETTINGS.values()} == {c.__name__ for c in tg.registry().values()}


if __name__ == "__main__":
    print(table())
