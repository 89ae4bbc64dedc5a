"""Every strategy in every family, and the README's table that says so.

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

README = Path(__file__).parents[2] / "README.md"
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
    "torchvision, open_clip, your own": [
        ("torchvision", "VisionTransformer (vit_b_16, ...)"),
        ("open_clip", "VisionTransformer"),
        ("torch", "nn.TransformerEncoder, by adapter="),
    ],
}
NO_CLASS_TOKEN = {"timm GAP, SigLIP", "transformers SigLIP", "NaFlex (SigLIP 2, timm)"}
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
    select, schedule = (SETTINGS | OF_THE_CLASS_TOKEN)[setting]
    if family in NO_CLASS_TOKEN and setting in OF_THE_CLASS_TOKEN:
        with pytest.raises(ValueError, match="class token"):
            tg.attach(model, select, schedule)
        return
    with torch.no_grad():
        plain = case.run(model)
        with tg.attach(model, select, schedule, adapter=case.adapter) as handle:
            outputs = case.run(model)
            assert min(handle.trace.counts + handle.trace.counts_inside) < 16
    assert all(out.isfinite().all() for out in outputs)
    assert not torch.equal(outputs[0], plain[0])


def table():
    rows = [["", *FAMILIES], ["---"] * (len(FAMILIES) + 1)]
    for setting in SETTINGS:
        lacking = NO_CLASS_TOKEN if setting in OF_THE_CLASS_TOKEN else ()
        rows.append([setting, *("no class token" if family in lacking else "yes" for family in FAMILIES)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def test_the_readme_has_the_table_of_strategies_and_families():
    assert table() in README.read_text(encoding="utf-8"), f"put this into the README:\n\n{table()}"


def test_every_strategy_is_in_the_table():
    assert {type(select).__name__ for select, _ in SETTINGS.values()} == {c.__name__ for c in tg.registry().values()}


if __name__ == "__main__":
    print(table())
