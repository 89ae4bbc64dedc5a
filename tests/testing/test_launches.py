"""Operations that attached strategies add: how they are counted, and how many each may take."""

import warnings

import pytest
import torch
from needs import library
from torch import nn

import tokengraph as tg
from tokengraph.testing import launches, tiny_vit
from tokengraph.testing.launches import operations

timm = library("timm")

THREE = tg.schedule.relative({3: 0.7, 6: 0.7, 9: 0.7})
# Operations a step beyond the plain model: not above what was reached (benchmarks/results/cpu-1-core/launches.md).
BUDGETS = {
    "tome": (tg.ToMe(), 13, 28),
    "topk": (tg.TopK(), THREE, 15),
    "evit": (tg.TopK(fuse=True), THREE, 23),
    "dynamicvit": (tg.DynamicViT(), None, 25),
    "gtp": (tg.GTP(), 8, 54),
    "expedite": (tg.Expedite(), {4: 0.5}, 85),
    "dpc-knn": (tg.DPCKNN(), {4: 0.25}, 64),
    "ailurus": (tg.AiluRus(), {4: 0.25}, 78),
    "token-migration": (tg.TokenMigration(), {4: 0.5}, 50),
    "grid-pool": (tg.GridPool(), {4: 0.25}, 12),
    "random": (tg.Random(), THREE, 11),
    "pitome": (tg.PiToMe.released(), tg.schedule.ratio(0.9125), 30),
    "tofu": (tg.ToFu(), tg.schedule.ratio(0.9, prefix=1), 30),
    "mctf": (tg.MCTF(), tg.MCTF.published_schedule(), 56),
    "dtem": (tg.DTEM(), 16, 28),
    "diffrate": (tg.DiffRate(), 13, 52),
    "diffrate by similarity": (tg.DiffRate(merge_by="similarity"), 13, 70),
    "tps": (tg.TPS(), None, 63),
}


@pytest.fixture(scope="module")
def deit():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return timm.create_model("deit_small_patch16_224").eval()


@pytest.mark.parametrize("name", BUDGETS)
def test_launches_of_a_step_keep_their_budget(name, deit):
    select, schedule, budget = BUDGETS[name]
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with tg.attach(deit, select, schedule):
            found = launches(deit, images)
    assert found.a_step <= budget, found.by_kind


def test_launches_counts_every_step_and_leaves_the_model_attached():
    model = tiny_vit()
    with tg.attach(model, "tome", [4, 0, 2]) as handle:
        found = launches(model)
        assert handle.trace.counts == [16, 12, 12, 10]
    assert found.steps == 2
    assert {name for name, kinds in found.by_step.items() if "argsort" in kinds} == {"blocks.0", "blocks.2"}
    assert sum(sum(kinds.values()) for kinds in found.by_step.values()) == found.beyond == sum(found.by_kind.values())
    images = torch.randn(2, 3, 32, 32)
    assert found.plain == operations(lambda: model(images)).total()


def test_launches_of_a_strategy_around_a_module_counts_the_blocks_with_fewer_tokens():
    model = tiny_vit()
    with tg.attach(model, tg.GridToMe.published(), {0: 0.5}):
        assert launches(model, torch.randn(2, 3, 32, 32)).steps == 3


def test_operations_leaves_out_views_and_metadata():
    x = torch.zeros(2, 6)
    views = (lambda: x.view(3, 4), lambda: x[:1, 0], lambda: x.transpose(0, 1), lambda: x.detach().split(1))
    assert [operations(view).total() for view in views] == [0, 0, 0, 0]
    assert operations(lambda: (x + 1).mul_(2)) == {"add": 1, "mul_": 1}


def test_launches_refuses_a_plain_model():
    with pytest.raises(ValueError, match=r"Expected a model with a strategy attached \(got none\)"):
        launches(tiny_vit())


def test_launches_asks_for_inputs_where_the_size_is_unknown():
    model = tiny_vit()
    with tg.attach(model, "tome", 4):
        patches, model.patch_embed.proj = model.patch_embed.proj, nn.Identity()
        with pytest.raises(ValueError, match=r"Expected inputs for a model of unknown image size \(got none\)"):
            launches(model)
        model.patch_embed.proj = patches
