"""Plans as files: they come back as they were, and anything else in them is a clear error."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import tokengraph as tg
from tokengraph.evaluate import Arrays, Options
from tokengraph.evaluate.settings import Setting, read_setting
from tokengraph.planning import Figures, Plan, Target
from tokengraph.testing import tiny_vit

TARGET = Target("VisionTransformer", 3, 32, 4, 16)
PLAN = Plan(
    Setting("dpc-knn", [1, 2, 0], {"reduce": "mlerp"}, resolution=24, prop_attn="half-log", then={2: "tome"}),
    (9, 8, 6, 6),
    TARGET,
    "patches",
    {"cost": 0.5},
    Figures(cost=0.5, loss=0.1),
    Figures(4, 0.49, 1.5, 2.0, 0.1, 0.9, 0.8, 0.7, 0.6),
    {"tome": [0.1, None, 0.2]},
    ("A note.",),
    3.2,
    False,
    "0.1.0",
    (0.5, 0.75, 0.9),
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "new" / "plan.json"
    PLAN.save(path)
    return path


def test_load_returns_what_save_wrote(file):
    assert Plan.load(file) == PLAN and str(Plan.load(file)) == str(PLAN)


def test_load_reads_a_file_without_similarity(file):
    made = json.loads(file.read_text())
    del made["similarity"]
    file.write_text(json.dumps(made))
    assert Plan.load(file) == replace(PLAN, similarity=())


def test_read_setting_takes_a_plan_its_file_and_its_content(file):
    assert read_setting(PLAN) == PLAN.setting
    assert read_setting(str(file)) == PLAN.setting
    assert read_setting(json.loads(file.read_text())) == PLAN.setting
    assert read_setting(PLAN.setting.name) == PLAN.setting


def test_loaded_plan_attaches(file):
    model = __import__("tokengraph.testing").testing.tiny_vit()
    with tg.attach(model, Plan.load(file)) as handle:
        model(torch.zeros(2, 3, 32, 32))
        assert handle.trace.counts == [9, 8, 6, 6]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "recipe"}, "a plan of tokengraph"),
        ({"format": 2}, "format 1 of plans"),
        ({"format": "1"}, "format 1 of plans"),
        ({"extra": 1}, "keys of a plan"),
        ({"tokens": None}, "tokens as numbers"),
        ({"tokens": [9, 8, 6]}, "4 token counts for 3 blocks"),
        ({"tokens": [9, 8, 8.5, 6]}, "tokens as numbers"),
        ({"tokens": [9, 8, 9, 6]}, "tokens that never rise"),
        ({"tokens": [9, 8, 6, 5]}, "the schedule that gives the plan's tokens"),
        ({"tokens": [10, 9, 7, 7]}, "a square number of tokens"),
        ({"preserve": "maps"}, "preserve as one of"),
        ({"preserve": ["class"]}, "preserve as one of"),
        ({"budget": {}}, "budget as one of"),
        ({"budget": {"cost": "half"}}, "budget as a finite number"),
        ({"budget": {"cost": float("nan")}}, "budget as a finite number"),
        ({"predicted": {"beauty": 1.0}}, "figures: images"),
        ({"measured": {"cost": True}}, "cost as a finite number"),
        ({"sensitivity": {"tome": [0.1]}}, "3 losses for tome"),
        ({"similarity": [0.5]}, "similarity as 3 cosines or none"),
        ({"similarity": [0.5, "a", 0.5]}, "similarity as a finite number"),
        ({"notes": "none"}, "notes as texts"),
        ({"seconds": "3"}, "seconds as a finite number"),
        ({"lift": 1}, "lift as true or false"),
        ({"version": 1}, "version as text"),
        ({"target": {"name": "X"}}, "keys of target"),
        ({"target": {"name": "X", "depth": 0, "channels": 32, "side": 4, "patches": 16}}, "depth of the target"),
        ({"target": {"name": "X", "depth": 3, "channels": 32, "side": 5, "patches": 16}}, "side \\* side patches"),
        ({"setting": "tome"}, "setting as an object"),
        ({"setting": {"strategy": "tomme", "schedule": [1, 2, 0], "resolution": 24}}, "Did you mean 'tome'"),
        ({"setting": {"strategy": "tome", "schedule": [1, 2, 0], "resolution": 25}}, "a multiple of 3 patches"),
        ({"setting": {"strategy": "tome", "schedule": [1, 2, 0]}}, "16 tokens before the first block"),
        ({"setting": {"resolution": 24}}, "a strategy, because tokens fall"),
        ({"setting": {"strategy": "tome", "schedule": [1, 2, 0], "options": {"k": 3}, "resolution": 24}}, "got 'k'"),
        ({"setting": {"strategy": "tome", "schedule": [1, 2, 0], "then": {"2": "tomme"}}}, "Did you mean 'tome'"),
    ],
)
def test_load_refuses_what_no_plan_has(file, change, told):
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=told):
        Plan.load(file)


def test_load_refuses_other_files(tmp_path):
    with pytest.raises(ValueError, match="Expected a file with a plan"):
        Plan.load(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match="Expected a plan as JSON"):
        Plan.load(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("[1]")
    with pytest.raises(ValueError, match="a plan of tokengraph"):
        Plan.load(tmp_path / "b.json")


def test_read_setting_refuses_a_plan_of_another_format(file):
    with pytest.raises(ValueError, match="a plan of format 1"):
        read_setting({**json.loads(file.read_text()), "format": 7})


def test_save_explains_a_strategy_without_a_name(tmp_path):
    with pytest.raises(ValueError, match="Expected a strategy by name"):
        Plan(Setting(tg.ToMe(), [1, 2, 0], resolution=24), (9, 8, 6, 6), TARGET).save(tmp_path / "a.json")


def test_load_says_which_keys_are_missing_and_which_unknown(file):
    made = json.loads(file.read_text())
    del made["target"]
    file.write_text(json.dumps(made | {"extra": 1}))
    with pytest.raises(ValueError, match=r"\(got 'without target, with extra'\)"):
        Plan.load(file)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"tokens": [9, 8, 6]}, "4 token counts for 3 blocks"),
        ({"tokens": [9, 8, 7, 6]}, r"the schedule that gives the plan's tokens, \[1, 1, 1\]"),
        ({"target": {"depth": "3"}}, "depth, channels and patches"),
    ],
)
def test_read_setting_refuses_a_plan_that_does_not_fit_itself(file, change, told):
    with pytest.raises(ValueError, match=told):
        read_setting({**json.loads(file.read_text()), **change})


def test_fidelity_refuses_a_plan_made_for_another_model(tmp_path):
    plan = replace(PLAN, setting=replace(PLAN.setting, resolution=None, then={}), tokens=(16, 15, 13, 13))
    plan.save(tmp_path / "plan.json")
    images = torch.randn(2, 3, 32, 32)
    assert tg.fidelity(tiny_vit(), images, str(tmp_path / "plan.json")).counts == (16, 15, 13, 13)
    for given in (str(tmp_path / "plan.json"), plan):
        with pytest.raises(ValueError, match="Expected the model that the plan was made for"):
            tg.fidelity(tiny_vit(depth=4), images, given)


@pytest.mark.parametrize("give", [lambda file: str(file), Plan.load])
def test_evaluate_refuses_a_plan_made_for_another_model(file, give):
    images = Arrays(np.zeros((2, 32, 32, 3), np.uint8))
    how = Options(time=False, memory=False, progress=False)
    for model, fits in ((tiny_vit(), True), (tiny_vit(depth=4), False), (tiny_vit(img_size=16), False)):
        row = tg.evaluate(model, [give(file)], images, controls=False, options=how).rows[1]
        assert fits == (not row.reason), row.reason
        assert fits or "Expected the model that the plan was made for, with 3 blocks, 32 channels" in row.reason
