"""The table of what is planned for a run."""

import pytest
import torch
from needs import library

import tokengraph as tg
from tokengraph.adapters.base import InputShape
from tokengraph.attach.plan import PlanTable
from tokengraph.flat.layout import Layout
from tokengraph.maps.lineage import Lineage
from tokengraph.testing import tiny_vit


def lineage(count, counts=None, coarse=True):
    start = Layout(2, 16)
    map_ = tg.Assignment(torch.zeros(32, dtype=torch.long), 1)
    return Lineage(start, Layout(2, count, counts), (map_,) if coarse else ())


def fewer(finished, keep, count):
    return keep < count


def test_table_has_one_number_where_images_agree_and_one_each_where_not():
    table = PlanTable.of([[16, 8, 4], [9, 8, 3]], 2)
    assert table.keep == [[16, 9], 8, [4, 3]]
    assert table.grows == [False, False, False]


def test_due_is_to_act_before_the_first_block_where_tokens_go_there():
    assert PlanTable.of([[8, 8]], 1).due(0, lineage(16, coarse=False), fewer) == ("act",)
    assert PlanTable.of([[16, 8]], 1).due(0, lineage(16, coarse=False), fewer) == ()


def test_due_is_to_act_where_any_image_has_more_than_planned():
    table = PlanTable.of([[16, 8, 8]], 2)
    assert table.due(1, lineage(16, coarse=False), fewer) == ("act",)
    assert table.due(2, lineage(8), fewer) == ()
    assert table.due(2, lineage(9, (8, 9)), fewer) == ("act",)


def test_due_asks_the_strategy_itself():
    asked = []
    PlanTable.of([[16, 8]], 1).due(1, lineage(12, coarse=False), lambda *given: asked.append(given))
    assert asked == [(1, 8, 12)]


def test_due_is_to_restore_where_the_plan_grows_and_tokens_are_missing():
    table = PlanTable.of([[16, 8, 16]], 2)
    assert table.due(2, lineage(8), fewer) == ("restore",)
    assert table.due(2, lineage(16, coarse=False), fewer) == ()


def test_due_is_to_restore_and_act_where_tokens_return_before_the_strategy_chooses_again():
    table = PlanTable.of([[16, 8, 8]], 2, frozenset({2}))
    assert table.due(2, lineage(8), fewer) == ("restore", "act")
    assert table.due(2, lineage(16, coarse=False), fewer) == ("act",)


def test_due_at_the_end_of_a_run_that_gives_every_patch_back_is_to_restore_instead_of_acting():
    table = PlanTable.of([[16, 16, 4]], 2, whole=True)
    assert table.due(1, lineage(16, coarse=False), fewer) == ()
    assert table.due(2, lineage(16, coarse=False), fewer) == ()  # what goes would come back at once
    assert table.due(2, lineage(8), fewer) == ("restore",)


def test_due_acts_in_a_batch_without_images_never():
    assert PlanTable.of([], 2).due(1, Lineage(Layout(0, 4), Layout(0, 4)), fewer) == ()


def plans(schedule, select="tome", **options):
    library("timm")
    return tg.attach(tiny_vit(), select, schedule, **options).trace.run.plans


def test_tables_of_the_own_size_are_made_once():
    made = plans(3)
    shape = InputShape((4, 4))
    assert made.table(16, shape, False) is made.table(16, shape, False)
    assert made.table(9, InputShape((3, 3)), False).keep == [9, 6, 3, 2]


def test_tables_of_images_that_differ_have_a_plan_each():
    made = plans({2: 0.5})
    table = made.table(16, InputShape((4, 4), ((4, 4), (3, 4)), torch.ones(2, 16, dtype=torch.bool)), False)
    assert table.keep == [[16, 12], [16, 12], [8, 6], [8, 6]]


def test_a_table_says_which_image_the_schedule_does_not_fit():
    made = plans(lambda depth, patches: [1 if patches == 16 else -5] * depth)
    with pytest.raises(ValueError, match="The image has 8 patches without padding, of 4 x 4 .the model"):
        made.table(8, InputShape((4, 4)), False)
    with pytest.raises(ValueError, match="The image has 40 patches without padding.$"):
        made.table(40, InputShape((5, 8)), False)


@pytest.mark.parametrize(("lift", "caller"), [(True, False), (False, True)])
def test_only_what_was_stored_comes_back_before_the_final_norm(lift, caller):
    assert not plans(3, lift=lift).table(16, InputShape((4, 4)), caller).whole
    assert plans({2: 8}, tg.TokenMigration(), lift=lift).table(16, InputShape((4, 4)), caller).whole
