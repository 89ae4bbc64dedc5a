"""Every strategy in every family, and the exceptions that the page of models names.

Print it: ``PYTHONPATH=tests/cases python tests/adapters/test_table.py``.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from architectures import cases
from needs import made
from strategies import CLASS, STRATEGIES, paired

import tokengraph as tg

MODELS = Path(__file__).parents[2] / "docs" / "models.md"
CASES = cases()


def label(select):
    """A row's name: the class, and what it is about the options that another model may lack."""
    if isinstance(select, tg.TopK):
        return f"TopK ({select.score})"
    if isinstance(select, tg.TPS):
        return f"TPS ({select.variant})"
    option = (
        ", sparsity < 1" if getattr(select, "sparsity", 1.0) < 1 else ", ahead" if getattr(select, "ahead", 0) else ""
    )
    return f"{type(select).__name__}{option}"


SETTINGS = {}
for select, schedule in (STRATEGIES | CLASS).values():
    SETTINGS.setdefault(label(select), (select, schedule))
SETTINGS = dict(sorted(SETTINGS.items(), key=lambda item: item[0].casefold()))
OF_THE_CLASS_TOKEN = {label(select): SETTINGS[label(select)] for select, _ in CLASS.values()}
OF_THE_CLASS_TOKEN |= {"GTP (cls-mean)": (tg.GTP(score="cls-mean"), 3)}
FAMILIES = {  # rows of the table, and the models that stand for each
    "timm ViT": [("timm", "vit_base_patch16_224"), ("timm", "vit_small_patch14_reg4_dinov2")],
    "timm GAP, SigLIP": [("timm", "vit_medium_patch16_gap_240"), ("timm", "vit_base_patch16_siglip_224")],
    "timm Eva, rotary": [("timm", "eva_giant_patch14_224"), ("timm", "vit_base_patch16_rope_224")],
    "BEiT, Data2Vec": [
        ("timm", "beit_base_patch16_224"),
        ("transformers", "BeitModel"),
        ("transformers", "Data2VecVisionModel"),
    ],
    "transformers ViT, DeiT, DINOv2, CLIP": [
        ("transformers", name) for name in ("ViTModel", "DeiTModel", "Dinov2Model", "CLIPVisionModel")
    ],
    "transformers DINOv3": [("transformers", "DINOv3ViTModel")],
    "transformers SigLIP": [("transformers", "SiglipVisionModel")],
    "NaFlex (SigLIP 2, timm)": [("transformers", "Siglip2VisionModel"), ("timm", "naflexvit_base_patch16_gap")],
    "transformers EoMT, DPT, YOLOS, OWL-ViT, AST": [
        ("transformers", name)
        for name in (
            "EomtForUniversalSegmentation",
            "DPTForDepthEstimation",
            "YolosModel",
            "OwlViTVisionModel",
            "ASTModel",
        )
    ],
    "transformers ViTPose": [("transformers", "VitPoseForPoseEstimation")],
    "video: transformers VideoMAE, ViViT, V-JEPA 2": [("transformers", "VideoMAEModel")],
    "torchvision, open_clip, your own": [
        ("torchvision", "VisionTransformer (vit_b_16, ...)"),
        ("open_clip", "VisionTransformer"),
        ("torch", "nn.TransformerEncoder, by adapter="),
    ],
}
VIDEO = "video: transformers VideoMAE, ViViT, V-JEPA 2"
NO_CLASS_TOKEN = {"timm GAP, SigLIP", "transformers SigLIP", "NaFlex (SigLIP 2, timm)", "transformers ViTPose", VIDEO}
OF_IMAGES = {"CubistMerge", "GridToMe"}  # they choose in the cells of an image's grid
OF_VIDEO = {  # settings that a grid (T, H, W) needs
    "Around": (tg.Around(tg.ToMe(), "attention"), {0: 0.5}),
    "Expedite": (tg.Expedite(clusters=(1, 2, 2)), {1: "cluster", 2: "reconstruct"}),
    "GTP": (tg.GTP(graph="semantic"), 3),
    "GTP, sparsity < 1": (tg.GTP(score="mixed-max", sparsity=0.7, graph="semantic"), 3),
}
# The first model of a family with every strategy, its others with two each.
PAIRS = [
    pytest.param(setting, family, model, id="/".join((setting, *model)))
    for family, models in FAMILIES.items()
    for setting in SETTINGS | OF_THE_CLASS_TOKEN
    for model in models
    if model == models[0] or (model, setting) in paired(models[1:], SETTINGS | OF_THE_CLASS_TOKEN, 1)
]
model_of = cache(lambda name: made(CASES[name]))


@pytest.mark.parametrize(("setting", "family", "name"), PAIRS)
def test_every_strategy_works_in_every_family(setting, family, name):
    """Scores of a class token are refused for models without one; all other pairs run."""
    case, model = CASES[name], model_of(name)
    select, schedule = (SETTINGS | OF_THE_CLASS_TOKEN | (OF_VIDEO if family == VIDEO else {}))[setting]
    if family in NO_CLASS_TOKEN and setting in OF_THE_CLASS_TOKEN:
        with pytest.raises(ValueError, match="class token"):
            tg.attach(model, select, schedule)
        return
    with torch.no_grad():
        plain = case.run(model)
        if family == VIDEO and setting in OF_IMAGES:
            with tg.attach(model, select, schedule), pytest.raises(ValueError, match=r"the full grid \(H, W\)"):
                case.run(model)
            return
        with tg.attach(model, select, schedule, adapter=case.adapter) as handle:
            outputs = case.run(model)
            assert min(handle.trace.counts + handle.trace.counts_inside) < 16
    assert all(out.isfinite().all() for out in outputs)
    assert not torch.equal(outputs[0], plain[0])


def table():
    """The strategies that some families refuse; every other pair runs."""
    lacking = ", ".join(family for family in FAMILIES if family in NO_CLASS_TOKEN)
    rows = ["| strategy | refused in | reason |", "| --- | --- | --- |"]
    rows += [f"| {setting} | {lacking} | no class token |" for setting in sorted(OF_THE_CLASS_TOKEN)]
    rows += [f"| {setting} | {VIDEO} | images only |" for setting in sorted(OF_IMAGES)]
    return "\n".join(rows)


def test_the_page_of_models_has_the_exceptions():
    assert table() in MODELS.read_text(encoding="utf-8"), f"put this into docs/models.md:\n\n{table()}"


def test_the_page_of_models_has_every_architecture():
    page = MODELS.read_text(encoding="utf-8")
    there = page[page.index("<details") : page.index("</details>")]
    assert [name for _, name in CASES if f"`{name}`" not in there] == []


def test_every_strategy_is_in_the_table():
    assert {type(select).__name__ for select, _ in SETTINGS.values()} == {c.__name__ for c in tg.registry().values()}


if __name__ == "__main__":
    print(table())
