"""One budget for blocks of pairwise numbers: results do not depend on it."""

import pytest
import torch

import tokengraph as tg
from tokengraph.flat.memory import DEFAULT, memory_budget, rows_within, set_memory_budget
from tokengraph.select.parts.graphs.halves import best_match, unit_rows


def test_set_memory_budget_holds_until_the_end_of_a_with():
    with set_memory_budget(1000):
        assert memory_budget() == 1000 and rows_within(2, 25, 99) == 5 and rows_within(2, 25, 3) == 3
        assert rows_within(100, 100, 99) == 1
    assert memory_budget() == DEFAULT == 256 * 2**20


@pytest.mark.parametrize(("budget", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_set_memory_budget_refuses_no_budget(budget, error):
    with pytest.raises(error, match="Expected (a )?budget"):
        set_memory_budget(budget)
    assert memory_budget() == DEFAULT


def whole_numbers(*shape):
    """Rows along few axes, so that products are exact and ties are many."""
    return torch.eye(6)[torch.randint(0, 6, shape, generator=torch.Generator().manual_seed(0))]


CHOICES = {
    "tome": lambda x: tg.tome(x, 25, num_prefix=1),
    "tome, no prefix": lambda x: tg.tome(x, 25),
    "tome, ragged": lambda x: tg.tome(x, [30, 25], mask=torch.arange(40) < torch.tensor([[40], [33]])),
    "pitome": lambda x: tg.pitome(x, 28, margin=0.5),
    "pitome, bsm": lambda x: tg.pitome(x, 28, margin=0.5, mode="bsm"),
    "dpc-knn": lambda x: tg.dpc_knn(x, 11),
    "tofu": lambda x: tg.tofu(x, 28),
}


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("make", [lambda: whole_numbers(2, 40), lambda: torch.randn(2, 40, 8)], ids=["ties", "random"])
def test_choices_in_blocks_are_those_in_one_piece(name, rows, make):
    x = make()
    whole = CHOICES[name](x)
    with set_memory_budget(2 * 20 * 4 * rows):
        parts = CHOICES[name](x)
    assert torch.equal(whole.cluster, parts.cluster)


def test_best_match_in_blocks_gives_ties_to_the_lower_index():
    a, b = unit_rows(whole_numbers(2, 20)), unit_rows(whole_numbers(2, 15))
    with set_memory_budget(2 * 15 * 4 * 3):
        best, to = best_match(a, b)
    edges = torch.matmul(a, b.transpose(1, 2))
    assert torch.equal(to, edges.argmax(dim=2)) and torch.allclose(best, edges.amax(dim=2), atol=1e-6)
