"""Which of many like tests run every time. The others are marked slow: ``make test`` runs some of them each time."""

import pytest


def quick_only(quick, values):
    """``values`` for parametrize, with those not in ``quick`` marked slow; each of ``quick`` must be among them."""
    values, quick = list(values), list(quick)
    assert [each for each in quick if each not in values] == []
    return [each if each in quick else pytest.param(each, marks=pytest.mark.slow) for each in values]
