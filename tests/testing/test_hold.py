"""A broken law says what it asks and what failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

import tokengraph as tg
from tokengraph.select.tokens import clamp_budget
from tokengraph.testing import check_select
from tokengraph.testing.hold import hold


def is_positive(x: int) -> None:
    """Numbers are above zero,
    all of them.

    A second paragraph.
    """
    if x <= 0:
        raise AssertionError  # bare, as an assert without a message (pytest would write one into an assert here)


def divides(x: int) -> None:
    print(1 // x)


def test_hold_shows_the_code_of_a_bare_assert_and_what_the_law_asks():
    expected = r"'is_positive': raise AssertionError [^\n]*\nThe law: Numbers are above zero, all of them\.$"
    with pytest.raises(AssertionError, match=expected):
        hold([is_positive], -1, "one")


def test_hold_names_other_errors_by_their_kind():
    with pytest.raises(AssertionError, match=r"^one breaks the law 'divides': ZeroDivisionError: [^\n]*$"):
        hold([divides], 0, "one")


@dataclass(frozen=True)
class _LastFirst(tg.Select):
    """Keeps all tokens apart but numbers them from the end, and merges the first ones."""

    name: ClassVar[str] = ""

    def __call__(self, tokens, budget):
        keep = clamp_budget(budget, tokens.x, tokens.mask)
        cluster = (tokens.x.size(1) - 1 - torch.arange(tokens.x.size(1))).clamp_max(keep - 1)
        return tg.Assignment.from_dense(cluster.expand(tokens.x.shape[:2]), keep, mask=tokens.mask)


def test_check_select_says_that_clusters_follow_the_order_of_tokens():
    with pytest.raises(AssertionError, match="'keeps_all_when_asked': keep=48 of 48 tokens changed their order"):
        check_select(_LastFirst())
