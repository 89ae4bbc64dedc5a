"""Settings: from text, JSON plans and objects."""

import json

import pytest
import torch
from strategies import STRATEGIES

import tokengraph as tg
from tokengraph.evaluate.grammar import read_schedule, split, write_schedule
from tokengraph.evaluate.settings import REDUCE, Setting, read_setting
from tokengraph.testing import tiny_vit


@pytest.mark.parametrize(
    ("text", "strategy", "schedule", "resolution", "model"),
    [
        ("tome:13", "tome", 13, None, None),
        ("ailurus:{5: 0.5}", "ailurus", {5: 0.5}, None, None),
        (" resolution:168 ", None, None, 168, None),
        ("model:deit_tiny_patch16_224", None, None, None, "deit_tiny_patch16_224"),
        ("model:hf-hub:timm/x", None, None, None, "hf-hub:timm/x"),
        ("resolution:196+tome:10", "tome", 10, 196, None),
        ("tome:10 + resolution:196", "tome", 10, 196, None),
        ("tome:[8, 8, 0]", "tome", [8, 8, 0], None, None),
        ("dynamicvit", "dynamicvit", None, None, None),
        ("mpm", "mpm", None, None, None),
        ("resolution:196+g2tm,tau=0.9,layer=1", "g2tm", None, 196, None),
        ("algm:{2: 49},tau=0.9", "algm", {2: 49}, None, None),
        ("mctf:16,ahead=True", "mctf", 16, None, None),
        ("expedite:{5: 'cluster', 12: 'reconstruct'}", "expedite", {5: "cluster", 12: "reconstruct"}, None, None),
        ("dense", None, None, None, None),
    ],
)
def test_read_setting_reads_text(text, strategy, schedule, resolution, model):
    found = read_setting(text)
    assert (found.strategy, found.schedule, found.resolution, found.model) == (strategy, schedule, resolution, model)
    assert read_setting(found.name) == found  # the name says the same


@pytest.mark.parametrize("text", ["tome:linear(8)", "tome:ratio(0.9)", "tome:constant(3)", "tome:relative({3: 0.7})"])
def test_read_setting_reads_named_schedules(text):
    name = text.partition(":")[2].partition("(")[0]
    value = {3: 0.7} if name == "relative" else 0.9 if name == "ratio" else 8 if name == "linear" else 3
    assert read_setting(text).schedule == getattr(tg.schedule, name)(value)
    assert read_setting(text).name == text


def test_read_setting_takes_options_of_strategy_and_attach():
    found = read_setting("ailurus:{5: 0.25},reduce=mlerp,lam=20,prop_attn=half-log")
    assert found.options == {"reduce": "mlerp", "lam": 20} and found.prop_attn == "half-log"
    select = found.select()
    assert (select.lam, select.reduce, select.k) == (20, "mlerp", 3)
    assert read_setting("tome:4,reduce=mlerp").select().reduction == "mlerp"
    assert tg.ToMe().reduction == "mean"  # other instances keep theirs
    expedite = read_setting("expedite:{5: 'cluster'},clusters=(8, 8),inv_temperature=auto").select()
    assert expedite.clusters == (8, 8) and expedite.inv_temperature == "auto"


def test_read_setting_keeps_the_settings_of_a_published_name():
    assert read_setting("evit:{3: 0.7}").select() == tg.TopK(fuse=True)
    assert read_setting("evit:{3: 0.7},score=norm").select() == tg.TopK(fuse=True, score="norm")


def test_read_setting_takes_json_plans(tmp_path):
    plan = {"strategy": "ailurus", "schedule": {"5": 0.5}, "options": {"lam": 20}, "resolution": 196}
    expected = Setting("ailurus", {5: 0.5}, {"lam": 20}, 196)
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    for given in (plan, json.dumps(plan), str(tmp_path / "plan.json")):
        assert read_setting(given) == expected
    assert read_setting({"strategy": tg.ToMe(), "schedule": "linear(8)"}).schedule == tg.schedule.linear(8)
    assert read_setting({"strategy": "tome", "schedule": {"relative": {"3": 0.7}}}).name == "tome:relative({3: 0.7})"


def test_read_setting_names_strategies_given_as_objects():
    assert Setting(tg.Random(seed=1), 4).name == "Random(seed=1):4"
    assert Setting("tome", 4, label="mine").name == "mine"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("tomme:13", r"Expected a strategy name \(got 'tomme'\). Did you mean 'tome'"),
        ("tome:x", "Expected a schedule such as 13"),
        ("tome:0.5", "Expected a schedule such as 13"),
        ("tome:True", "Expected a schedule such as 13"),
        ("tome:13+gtp:8", "Expected each part of a setting once .got options, schedule, strategy twice"),
        ("resolution:196+resolution:168", "once .got resolution twice"),
        ("resolution:0", "Expected resolution as a number of pixels"),
        ("resolution:big", "Expected resolution as a number of pixels"),
        ("tome:{5: 0.5", "Expected brackets and quotes that close"),
        ("tome:5}", "Expected brackets and quotes that close"),
        ("tome:13,lam", "Expected options as NAME=VALUE"),
        ("", "Expected a strategy, resolution:PX or model:NAME"),
        ('{"strategy": "tome", "r": 13}', "Expected keys of a plan: .*got r"),
        ('{"strategy": 3}', "Expected strategy of a plan as str"),
        ('{"schedule": 3}', "Expected a strategy beside the schedule"),
        ('{"strategy": "tome", "schedule": true}', "Expected schedule of a plan"),
        ('{"strategy": "tome", "schedule": {"a": 1}}', "Expected layers of a schedule as whole numbers"),
        ('{"resolution": "196"}', "Expected resolution as a number"),
        ('{"strategy": ', "Expected a JSON plan"),
        ("nowhere.json", "Expected a file with a JSON plan"),
    ],
)
def test_read_setting_says_what_would_do(given, message):
    with pytest.raises(ValueError, match=message):
        read_setting(given)


def test_read_setting_refuses_other_kinds():
    with pytest.raises(TypeError, match="Expected a setting as text, dict or Setting .got int"):
        read_setting(13)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ailurus:{5: 0.5},lambda=3",
            "Expected options of AiluRus: k, .*got 'lambda'.*All strategies take prop_attn",
        ),
        ("topk:{5: 0.5},reduce=mlerp", "Expected reduce for TopK as nothing"),
        ("tome:4,reduce=median", "Expected reduce for ToMe as mean, sum, max, absmax, mlerp"),
    ],
)
def test_select_refuses_options_that_the_strategy_lacks(text, message):
    with pytest.raises(ValueError, match=message):
        read_setting(text).select()


def test_split_respects_brackets_and_quotes():
    assert split("a:{1: 2, 3: 4},b=(1, 2),c='x,y'", ",") == ["a:{1: 2, 3: 4}", "b=(1, 2)", "c='x,y'"]


def test_write_schedule_is_read_back():
    rules = [tg.schedule.linear(8), tg.schedule.relative({1: 0.5, 2: 0.5}), tg.schedule.powers(0.7, (3, 6, 9))]
    rules += [tg.schedule.ratio(0.9), tg.schedule.ratio(0.9, prefix=1), tg.schedule.powers(0.7, (3,))]
    for schedule in (13, {5: 0.5}, [1, 2], *rules):
        assert read_schedule(write_schedule(schedule)) == schedule


def test_read_schedule_takes_the_arguments_of_rules():
    assert write_schedule(read_schedule("ratio(0.9, prefix=1)")) == "ratio(0.9, prefix=1)"  # 0.9 alone is another one
    assert write_schedule(read_schedule(" powers( keep=0.7, layers=(3, 6) )")) == "powers(0.7, (3, 6))"
    for text in ("ratio(0.9, 1)", "ratio(0.9, suffix=1)", "powers(0.7)", "linear(True)", "linear(x)", "relative(3)"):
        with pytest.raises(ValueError, match="Expected a schedule such as 13"):
            read_schedule(text)
    with pytest.raises(ValueError, match="Expected rising layers"):
        read_schedule("powers(0.7, (6, 3))")


def test_key_tells_settings_apart_that_a_name_does_not(tmp_path):
    one, two = (Setting("tome", r, label="mine") for r in (4, 5))
    assert one.name == two.name == "mine" and one.key != two.key
    one, two = (Setting(tg.DynamicViT(threshold=t)) for t in (0.5, 0.6))  # its repr says nothing of the threshold
    assert one.key != two.key and one.key == Setting(tg.DynamicViT(threshold=0.5)).key
    file = tmp_path / "weights.pt"
    file.write_bytes(b"1")
    setting = read_setting(f"dynamicvit:{{1: 0.5}},weights={file}")
    before = setting.key
    file.write_bytes(b"12")
    assert setting.key != before and read_setting("tome:4").key == "tome:4"


MERGING = [n for n, (s, _) in STRATEGIES.items() if s.merges and not s.learns and not set(REDUCE) & set(vars(s))]


@pytest.mark.parametrize("name", MERGING)
def test_reduce_changes_how_a_strategy_pools_in_a_model(name):
    select, schedule = STRATEGIES[name]
    images, model = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), tiny_vit()
    if name in ("token-transforming", "toma", "toma-tiles", "around-both"):  # their maps are weighted
        with pytest.raises(ValueError, match="Expected reduction 'mean' for a weighted map"):
            tg.fidelity(model, images, Setting(select, schedule, {"reduce": "max"}))
        return
    found = [
        tg.fidelity(model, images, Setting(select, schedule, {"reduce": way})).patch_cosine for way in ("mean", "max")
    ]
    assert abs(found[0] - found[1]) > 1e-4
