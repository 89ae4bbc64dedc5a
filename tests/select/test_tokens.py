"""The budget that every method clamps."""

import numpy as np
import pytest
import torch

from tokengraph.select.tokens import Tokens, clamp_budget

X = torch.zeros(2, 6, 3)


def test_clamp_budget_takes_ints_of_any_make():
    assert clamp_budget(4, X, None) == 4 and clamp_budget(9, X, None) == 6
    assert clamp_budget(np.int64(4), X, None) == 4
    got = clamp_budget([np.int32(2), 9], X, None)
    assert got == [2, 6] and {type(n) for n in got} == {int}


@pytest.mark.parametrize("keep", [0.5, True, "3", None, np.float32(2.0), (2, 3)])
def test_clamp_budget_refuses_what_is_no_int(keep):
    with pytest.raises(
        TypeError, match=r"Expected keep as an int \(got .*\)\. For a share use tg.coarsen or tokens_to"
    ):
        clamp_budget(keep, X, None)


@pytest.mark.parametrize("keep", [[2, 0.5], [True, 2], [None, 2]])
def test_clamp_budget_refuses_a_list_of_other_things(keep):
    with pytest.raises(TypeError, match=r"Expected keep as a list of ints \(got \["):
        clamp_budget(keep, X, None)


def test_clamp_budget_compiles_whole_with_a_symbolic_budget():
    torch.compiler.reset()

    def run(x):
        return x[:, : clamp_budget(x.size(1) // 2, x, None)]

    compiled = torch.compile(run, fullgraph=True, backend="eager", dynamic=True)
    assert [compiled(torch.zeros(2, n, 3)).size(1) for n in (6, 10)] == [3, 5]


def test_tokens_have_no_leftover_copy_method():
    assert not hasattr(Tokens, "with_x")
