"""The registry and the resolver."""

import numpy as np
import pytest
from needs import library

import tokengraph as tg
from tokengraph.schedule import tokens_to_keep
from tokengraph.select import base
from tokengraph.testing import tiny_vit


def test_registry_holds_one_strategy_a_file():
    published = {"ailurus", "dpc-knn", "dynamicvit", "expedite", "gtp", "pitome", "tome", "topk"}
    merging = {"algm", "atc", "cubist-merge", "g2tm", "k-medoids", "mctf", "mpm", "tofu", "token-transforming"}
    assert set(tg.registry()) >= published | merging | {"grid-pool", "random", "token-migration"}


@pytest.mark.parametrize("asked", ["dpc-knn", "DPC_KNN", "dpcknn", tg.DPCKNN, tg.DPCKNN()])
def test_resolve_takes_name_class_or_instance(asked):
    assert tg.resolve(asked) == tg.DPCKNN()


def test_resolve_answers_a_wrong_name_with_the_nearest():
    with pytest.raises(ValueError, match=r"Expected a strategy name \(got 'tomme'\). Did you mean 'tome'\?"):
        tg.resolve("tomme")
    with pytest.raises(ValueError, match="Known: adavit, ailurus, algm, around, atc"):
        tg.resolve("qqq")
    with pytest.raises(TypeError, match="Expected a strategy as name, class or instance"):
        tg.resolve(3)


def test_strategy_refuses_unknown_options():
    with pytest.raises(TypeError, match="lamda"):
        tg.AiluRus(lamda=3)


def test_subclass_with_a_bad_placement_is_refused():
    with pytest.raises(ValueError, match="Expected placement to be before, inside or after"):

        class Nowhere(tg.Select):
            name = "nowhere"
            placement = "beside"

    assert "nowhere" not in tg.registry()


def test_subclass_does_not_take_over_an_inherited_or_a_known_name():
    class Quieter(tg.DPCKNN):
        placement = "before"

    assert tg.resolve("dpc-knn") == tg.DPCKNN() != Quieter()
    with pytest.raises(ValueError, match=r"Expected a new strategy name \(got 'ToMe', which is ToMe's\)"):

        class Mine(tg.Select):
            name = "ToMe"


def test_tokens_to_keep_rounds_shares_up_as_tcformer_does():
    assert tokens_to_keep(0.07, 100) == 8  # 0.07 * 100 is a little above 7 in floating point
    assert tokens_to_keep(0.25, 196) == 49
    assert tokens_to_keep(1e-9, 10) == 1
    assert tokens_to_keep(500, 10) == 10


@pytest.mark.parametrize(("keep", "error"), [(0, ValueError), (1.5, ValueError), (0.0, ValueError), (True, TypeError),
                                             ("3", TypeError)])  # fmt: skip
def test_tokens_to_keep_refuses(keep, error):
    with pytest.raises(error, match="Expected .*keep"):
        tokens_to_keep(keep, 10)


def test_tokens_to_keep_takes_numpy_numbers_and_gives_ints():
    got = [tokens_to_keep(k, 100) for k in (np.int64(7), np.float32(0.5), np.float64(0.25))]
    assert got == [7, 50, 25] and {type(n) for n in got} == {int}
    with pytest.raises(TypeError, match="Expected keep as an int or a float ratio"):
        tokens_to_keep(np.bool_(True), 10)


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        ("evit", tg.TopK(fuse=True)),
        ("EViT", tg.TopK(fuse=True)),
        ("tcformer", tg.DPCKNN(5)),
        ("GTP-ViT", tg.GTP()),
        ("token merging", tg.ToMe()),
        ("fast-itpn", tg.TokenMigration()),
    ],
)
def test_resolve_takes_names_that_methods_were_published_under(name, strategy):
    assert repr(tg.resolve(name)) == repr(strategy)
    assert strategy.name in tg.registry() and name not in tg.registry()


def test_resolve_takes_dynamicvit_by_name_and_attach_evit():
    assert type(tg.resolve("DynamicViT")) is tg.DynamicViT
    library("timm")
    with tg.attach(tiny_vit(), "evit", {1: 8}) as handle:
        assert handle.select == tg.TopK(fuse=True)


def test_a_strategy_of_ones_own_may_take_a_published_name():
    class Own(tg.DPCKNN):
        name = "my-tcformer"
        aliases = {"tcformer-of-mine": {"k": 3}}  # noqa: RUF012

    assert tg.resolve("tcformer-of-mine") == Own(k=3)
    for names in (base._REGISTRY, base._ALIASES):
        for key in [k for k in names if "mytcformer" in k or "ofmine" in k]:
            del names[key]


def test_resolve_lists_what_there_is_behind_its_guess():
    with pytest.raises(ValueError, match=r"Did you mean 'dynamicvit'\? Known: adavit, ailurus, algm, around, atc"):
        tg.resolve("dynamic vitt")


@pytest.mark.parametrize(
    ("preset", "same"),
    [
        (
            tg.Expedite.published((2, 3)),
            tg.Expedite((2, 3), inv_temperature=0.02, normalize="l2", ties="released", empty="zero"),
        ),
        (tg.DPCKNN.published(), tg.DPCKNN(k=5, include_self=True, order="score", reduce="mean")),
        (tg.TopK.published(), tg.TopK(score="class", fuse=True)),
        (tg.MPM.published(), tg.MPM(layers=(2, 5), official=True)),
        (tg.G2TM.published("cityscapes"), tg.G2TM(0.94, layer=2, official=True)),
        (tg.ALGM.published("vit_large"), tg.ALGM(0.95, layers=(1, 7), official=True)),
        (tg.ATC.published("single"), tg.ATC("single", official=True)),
        (tg.ToMe.published(), tg.ToMe(order="published")),
        (tg.KMedoids.published(), tg.KMedoids(objective="released")),
        (tg.MCTF.published(), tg.MCTF(tau=(1, 20, 40), ahead=True)),
        (tg.ToFu.published(), tg.ToFu(reduce="released")),
        (tg.PiToMe.published(), tg.PiToMe(mode=("bsm",) * 6 + ("energy",) * 6, official=True)),
    ],
    ids=lambda s: type(s).__name__,
)
def test_published_is_one_name_for_the_released_behaviour(preset, same):
    assert preset == same


def test_published_of_strategies_that_learn():
    select = tg.DynamicViT.published(0.8)
    assert (select.keep, select.order, select.official) == (0.8, "score", True)
    assert tg.DynamicSpatial.published().remerge is False


@pytest.mark.parametrize(
    ("select", "reads", "flags"),  # flags: reads_attention, needs_class_token, needs_map
    [
        (tg.ToMe(), "keys", (True, False, False)),
        (tg.DPCKNN(), "nothing", (False, False, False)),
        (tg.TopK(), "class", (True, True, False)),
        (tg.TopK(score="norm"), "nothing", (False, False, False)),
        (tg.GTP(), "map", (True, False, True)),
        (tg.GTP(score="cls-max"), "class", (True, True, False)),
        (tg.GTP(score="cls-max", sparsity=0.5), "map", (True, True, True)),
        (tg.TokenMigration(similarity="tokens"), "nothing", (False, False, False)),
    ],
    ids=repr,
)
def test_reads_says_what_the_older_attributes_say(select, reads, flags):
    assert select.reads == reads
    assert (select.reads_attention, select.needs_class_token, select.needs_map) == flags


def test_reads_follows_the_older_attributes_of_a_strategy_that_has_them():
    class Blind(tg.ToMe):
        name, reads_attention = "", False

    class Open(tg.ToMe):
        name = ""

        @property
        def needs_map(self):
            return self.order == "raster"

    class Sees(Open):
        name, reads = "", "class"

    assert (Blind().reads, Open().reads, Open("raster").reads, Sees().reads) == ("nothing", "keys", "map", "class")
    with pytest.raises(ValueError, match="be one of nothing, norm, keys, class, map, map.keys .got 'queries'"):
        type("Wrong", (tg.ToMe,), {"name": "", "reads": "queries"})


@pytest.mark.parametrize("select", [tg.AiluRus(), tg.DPCKNN()])
def test_peaks_pool_by_the_mean_on_graphs_and_by_mlerp_in_models(select):
    assert (select.reduction_at(-1), select.reduction_at(0)) == ("mean", "mlerp")
    assert type(select)(reduce="max").reduction_at(-1) == type(select)(reduce="max").reduction_at(3) == "max"
    with pytest.raises(ValueError, match="Expected reduce to be one of"):
        type(select)(reduce="median")
