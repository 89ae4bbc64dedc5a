"""Each law with a meaning kills the mistake it was written for, by name."""

from dataclasses import dataclass, replace

import pytest
import torch
from needs import library

import tokengraph as tg
from tokengraph.adapters.timm.vit import TimmModel, TimmViT
from tokengraph.attention.size_bias import SizeRule
from tokengraph.maps.lineage import Lineage
from tokengraph.testing import SELECT_LAWS, check_model, check_select, tiny_vit

library("timm")
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NEW = {"composes", "connects", "has_exact_gradients", "takes_padding", "ragged_equals_fixed"}
OLD = [law for law in SELECT_LAWS if law.__name__ not in {*NEW, "compiles_whole"}]


class IgnoresMask(tg.ToMe):
    def __call__(self, tokens, budget):
        keep = max(budget) if isinstance(budget, list) else budget
        return super().__call__(replace(tokens, mask=None), keep)


class ReadsPadding(tg.TopK):
    """Takes padding out, but scores tokens against the mean of all rows, padding too."""

    def __call__(self, tokens, budget):
        x = tokens.x.detach().float()
        score = (x - x.mean(dim=1, keepdim=True)).norm(dim=2)
        return tg.topk(score, budget, mask=tokens.mask)


class ReversesWithMask(tg.TopK):
    """Keeps the worst tokens wherever a mask is given."""

    def __call__(self, tokens, budget):
        score = tokens.x.detach().norm(dim=2)
        return tg.topk(score if tokens.mask is None else -score, budget, mask=tokens.mask)


def wrapped(kind):
    """ToMe whose maps are of another class, once they are made."""

    @dataclass(frozen=True)
    class Wrapped(tg.ToMe):
        def __call__(self, tokens, budget):
            made = super().__call__(tokens, budget)
            return kind(**{k: v for k, v in made.__dict__.items()})

    return Wrapped()


class ComposesBackwards(tg.Assignment):
    def then(self, other):
        made = super().then(other)
        return replace(made, cluster=made.num_clusters - 1 - made.cluster)


class ConnectsTransposed(tg.Assignment):
    def connect(self, edge_index, edge_weight=None, *, loops=True):
        return super().connect(edge_index.flip(0), edge_weight, loops=loops)


class _Halved(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


class LosesGradients(tg.Assignment):
    def lift(self, y, fill=None):
        return _Halved.apply(super().lift(y, fill))


SELECT_MUTANTS = {
    "ignores the mask": (IgnoresMask(), "takes_padding"),
    "reads padding": (ReadsPadding(), "takes_padding"),
    "another choice with a full mask": (ReversesWithMask(), "ragged_equals_fixed"),
    "composes backwards": (wrapped(ComposesBackwards), "composes"),
    "connects against the arrows": (wrapped(ConnectsTransposed), "connects"),
    "half the gradient": (wrapped(LosesGradients), "has_exact_gradients"),
}


@pytest.mark.parametrize("name", SELECT_MUTANTS)
def test_law_kills_the_mutant_of_a_strategy(name):
    mutant, law = SELECT_MUTANTS[name]
    for old in OLD:
        old(mutant)
    others = [other.__name__ for other in SELECT_LAWS if other.__name__ != law]
    with pytest.raises(AssertionError, match=f"breaks the law '{law}'"):
        check_select(mutant, without=others)


class HalfWeights(tg.TopK):
    """Rounds its weights to the dtype of the features."""

    def __call__(self, tokens, budget):
        made = super().__call__(tokens, budget)
        return replace(made, weight=made.weight.to(tokens.x.dtype))


def test_keeps_the_dtype_kills_weights_in_half_precision():
    with pytest.raises(AssertionError, match="breaks the law 'keeps_the_dtype'.*weights in torch.float16"):
        check_select(HalfWeights(score="norm", fuse=True))


def keys_are_queries(patch):
    own = TimmViT.statistics

    def statistics(self, *args):
        made = own(self, *args)
        project = made._project
        made._project = lambda: (project()[0], project()[0])
        made._keys = None
        return made

    patch.setattr(TimmViT, "statistics", statistics)


def pooling_counts_clusters(patch):
    patch.setattr(TimmModel, "pool", lambda self, x, pool_type=None: super(TimmModel, self).pool(x, pool_type))


def no_proportional_attention(patch):
    patch.setattr(SizeRule, "of", classmethod(lambda cls, *args, own=SizeRule.of: own("none", *args[1:])))


def lifts_in_reverse(patch):
    own = Lineage.lift
    patch.setattr(Lineage, "lift", lambda self, rows, *args, **kw: own(self, rows.flip(1), *args, **kw))


def lifts_maps_in_reverse(patch):
    own = Lineage._lift
    patch.setattr(Lineage, "_lift", lambda self, *args: own(replace(self, maps=self.maps[::-1]), *args))


MODEL_MUTANTS = {
    "keys are queries": (keys_are_queries, "reads_the_attention_of_its_block", {}),
    "average pooling counts clusters": (
        pooling_counts_clusters,
        "changes_nothing_by_merging_equal_tokens",
        {"class_token": False, "global_pool": "avg"},
    ),
    "map pooling counts clusters": (
        pooling_counts_clusters,
        "changes_nothing_by_merging_equal_tokens",
        {"class_token": False, "global_pool": "map"},
    ),
    "no proportional attention": (no_proportional_attention, "changes_nothing_by_merging_equal_tokens", {}),
    "lifts rows in reverse order": (lifts_in_reverse, "changes_nothing_by_merging_equal_tokens", {}),
    "lifts maps in reverse order": (lifts_maps_in_reverse, "changes_nothing_by_merging_equal_tokens", {}),
}


@pytest.mark.parametrize("name", MODEL_MUTANTS)
def test_law_kills_the_mutant_of_a_model(name, monkeypatch):
    mutate, law, options = MODEL_MUTANTS[name]
    mutate(monkeypatch)
    old = ["changes_nothing_by_merging_equal_tokens", "reads_the_attention_of_its_block"]
    check_model(lambda: tiny_vit(**options), IMAGES, without=[*old, "compiles_in_one_graph"])
    with pytest.raises(AssertionError, match=f"breaks the law '{law}'"):
        check_model(lambda: tiny_vit(**options), IMAGES, without=[other for other in old if other != law])


class Breaks(tg.Select):
    def __call__(self, tokens, budget):
        return [][0]


def test_check_select_names_the_law_of_any_error():
    with pytest.raises(AssertionError, match="breaks the law 'keeps_the_budget': IndexError: list index"):
        check_select(Breaks())


def test_check_select_refuses_unknown_laws_to_leave_out():
    with pytest.raises(ValueError, match=r"Expected without= to name laws \(got 'padding'\). Known: keeps_the_budget"):
        check_select(tg.ToMe(), without=["padding"])


class OwnWords(tg.TopK):
    def __call__(self, tokens, budget):
        if budget == 0:
            raise ValueError("nothing to keep")
        return super().__call__(tokens, budget)


def test_check_select_takes_any_message_of_a_value_error():
    check_select(OwnWords(score="norm"), without=["compiles_whole"])


class Raw(tg.Select):
    def __call__(self, tokens, budget):
        return torch.zeros(tokens.x.shape[:2], dtype=torch.long)


def test_check_select_says_what_a_strategy_returns():
    with pytest.raises(AssertionError, match=r"Expected an Assignment or a SoftAssignment \(got Tensor\)"):
        check_select(Raw())


def test_check_select_takes_a_class_and_a_name():
    most = [law.__name__ for law in SELECT_LAWS if law.__name__ != "keeps_all_when_asked"]
    check_select(tg.ToMe, without=most)
    check_select("tome", without=most)
