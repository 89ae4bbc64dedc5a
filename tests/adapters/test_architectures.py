"""Every law of ``attach`` over every architecture, its variants and every strategy."""

from functools import cache

import pytest
from architectures import IMAGES, cases
from dense_cases import dense
from needs import is_pinned, library, made
from strategies import paired
from variants import strategy_cases, variants

import tokengraph as tg
from tokengraph.adapters import find_adapter
from tokengraph.testing import MODEL_LAWS, check_model, tiny_vit

CASES = cases() | variants()
STRATEGY_CASES = strategy_cases()
LIBRARIES = {name: name for name in ("timm", "transformers", "torchvision", "torch")} | {"open_clip": "open_clip_torch"}
ONCE = {  # with ToMe alone
    "removes_what_was_asked",  # by a count that not every strategy keeps
    "loads_its_state",
    "counts_the_tokens_of_the_model",  # no strategy takes part
    "treats_images_alone",  # the files of the families have it for each kind and each strategy
}
ON_SOME_MODELS = {"copies_are_independent", "has_the_plain_gradients_under_checkpointing"}  # the others on one
WITH_EVERY_LAW = {("timm", "vit_base_patch16_224")}
OF_FIXED_WEIGHTS = {"is_bit_identical_while_nothing_is_removed", "gives_the_model_back", "trains"}
KINDS = {  # one model of each kind of block
    ("timm", "vit_base_patch16_224"),
    ("timm", "eva02_tiny_patch14_224"),
    ("timm", "vit_small_patch16_rope_mixed_ape_224"),
    ("timm", "BEiT, timm_both"),
    ("timm", "naflexvit_base_patch16_gap"),
    *(("transformers", f"{stem}Model") for stem in "ViT DeiT Dinov2WithRegisters DINOv3ViT ViTMAE ViTMSN".split()),
    *(("transformers", name) for name in ("IJepaModel", "CLIPVisionModelWithProjection", "SiglipVisionModel")),
    *(("transformers", name) for name in ("Dinov2Backbone", "BeitModel", "Data2VecVisionModel", "Siglip2VisionModel")),
    *(("transformers", name) for name in ("YolosModel", "VJEPA2Model")),
    ("torchvision", "VisionTransformer (vit_b_16, ...)"),
    ("open_clip", "VisionTransformer"),
    ("torch", "nn.TransformerEncoder, by adapter="),
}
OF_BLOCKS = {  # laws of what blocks do: the quick run holds them for one model of each kind
    "copies_are_independent",
    "loads_its_state",
    "has_the_plain_gradients_under_checkpointing",
    "reads_the_attention_of_its_block",
    "trains_after_inference_mode",
}
COMPILED = KINDS & {  # in seconds each: one model of each adapter, one with rotary positions, one with packed images
    ("timm", "vit_base_patch16_224"),
    ("timm", "vit_small_patch16_rope_mixed_ape_224"),
    ("timm", "BEiT, timm_both"),
    ("timm", "naflexvit_base_patch16_gap"),
    ("transformers", "ViTModel"),
    ("transformers", "BeitModel"),
    ("transformers", "Data2VecVisionModel"),
    ("transformers", "YolosModel"),
    ("transformers", "VJEPA2Model"),
    ("torchvision", "VisionTransformer (vit_b_16, ...)"),
    ("open_clip", "VisionTransformer"),
    ("torch", "nn.TransformerEncoder, by adapter="),
}
# Strategies compiled in a model: by keys, by the class token, by the map, learned, stored, reconstructed, around a
# part, ahead of blocks, by a threshold. tests/test_laws.py compiles choices by themselves.
COMPILED_STRATEGIES = {
    "topk-class", "gtp-sparse", "dynamicvit", "migration", "expedite", "around-both", "mctf-ahead", "mpm",
}  # fmt: skip


def kind_of_block(case, model):
    core, adapter = find_adapter(model, case.adapter)
    block = adapter.blocks(core)[0]
    attention = next(type(part) for part in block.modules() if "Attention" in type(part).__name__)
    return type(adapter), type(block), attention


def laws_of(name, case):
    """Laws for a strategy other than ToMe; one that learns puts modules into the model, with tests of their own."""
    left_out = ONCE | (OF_FIXED_WEIGHTS if case.select.learns else set())
    wanted = {law.__name__ for law in MODEL_LAWS} if name[:2] in WITH_EVERY_LAW else ON_SOME_MODELS
    return [law for law in MODEL_LAWS if law.__name__ in wanted - left_out]


def pairs():
    """All laws for each strategy on one model; two of them on two other kinds of blocks, in the quick run on one."""
    kinds = sorted({name[:2] for name in STRATEGY_CASES} - WITH_EVERY_LAW)
    strategies = {name[2]: 0 for name in STRATEGY_CASES}
    met, quick = ({(*kind, name) for kind, name in paired(kinds, strategies, each)} for each in (2, 1))
    for name, case in STRATEGY_CASES.items():
        for law in laws_of(name, case) if name[:2] in WITH_EVERY_LAW or name in met else ():
            compiles = law.__name__ == "compiles_in_one_graph"
            slow = name[2] not in COMPILED_STRATEGIES if compiles else name in met - quick
            marks = pytest.mark.slow if slow else ()
            yield pytest.param(name, law, marks=marks, id=f"{'/'.join(name)}/{law.__name__}")


@cache
def refusal(name):
    """Why this version of a library cannot make the case's model; empty if it can."""
    try:
        made((CASES | STRATEGY_CASES)[name])
    except pytest.skip.Exception as reason:
        return str(reason)
    return ""


def hold(law, name):
    if reason := refusal(name):
        pytest.skip(reason)
    law((CASES | STRATEGY_CASES)[name])


def params():
    """Every law for every case; in the quick run laws of blocks for one model of each kind, and few compilations."""
    for name, case in CASES.items():
        for law in MODEL_LAWS:
            compiles = law.__name__ == "compiles_in_one_graph"
            if compiles and not case.one_graph and name in variants():
                continue  # the files of these models do it with one strategy each
            slow = name not in COMPILED if compiles else law.__name__ in OF_BLOCKS and name not in KINDS
            marks = pytest.mark.slow if slow else ()
            yield pytest.param(name, law, marks=marks, id=f"{'/'.join(name)}-{law.__name__}")


@pytest.mark.parametrize(("name", "law"), list(params()))
def test_every_law_holds(name, law):
    hold(law, name)


@pytest.mark.parametrize(("name", "law"), list(pairs()))
def test_every_law_holds_for_every_strategy(name, law):
    hold(law, name)


@pytest.mark.parametrize("origin", LIBRARIES)
def test_every_model_is_made_by_the_versions_of_the_constraints(origin):
    """Otherwise a mistake in a case would skip all its laws."""
    if not is_pinned(LIBRARIES[origin]):
        pytest.skip(f"another {LIBRARIES[origin]} than in constraints.txt")
    known = {name: case for (where, name), case in CASES.items() if where == origin}
    kinds, tried, adapters, compiled = set(), set(), set(), set()
    for name, case in known.items():
        try:
            kind = kind_of_block(case, case.make())
        except (Exception, pytest.skip.Exception) as error:
            raise AssertionError(f"Expected {origin}'s {name} to be made (got {error!r}).") from error
        if (origin, name) in dense() and (origin, name) not in KINDS:
            continue  # tests/adapters/transformers has more for them, the slow run all laws
        kinds.add(kind)
        tried |= {kind} if (origin, name) in KINDS else set()
        if case.one_graph:
            adapters.add(kind[0])
            compiled |= {kind[0]} if (origin, name) in COMPILED else set()
    assert (tried, compiled) == (kinds, adapters)  # by the quick run


def test_every_case_is_of_a_known_library():
    assert {origin for origin, _ in CASES} == set(LIBRARIES)


def test_every_strategy_has_cases():
    found = {type(case.select).__name__ for case in STRATEGY_CASES.values()} | {"ToMe"}
    assert found == {c.__name__ for c in tg.registry().values()}


def test_check_model_names_the_law_that_is_broken():
    library("timm")

    class Forgetful(type(tiny_vit())):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(x) + self.calls

    def make():
        model = tiny_vit()
        model.__class__ = Forgetful
        return model

    with pytest.raises(AssertionError, match="breaks the law 'is_bit_identical_while_nothing_is_removed'"):
        check_model(make, IMAGES)


def test_there_are_many_architectures():
    assert len(cases()) >= 60  # docs/models.md lists them, see test_table.py
