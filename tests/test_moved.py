"""Modules of version 0.1 are found under their old names."""

import pickle
import sys
from importlib import import_module

import pytest

import tokengraph as tg
from tokengraph.moved import MOVED


@pytest.mark.parametrize("old", sorted(MOVED))
def test_an_old_name_gives_the_module_at_its_new_place(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to {MOVED[old]}"):
        module = import_module(old)
    assert module is import_module(MOVED[old])
    assert module.__name__ == module.__spec__.name == MOVED[old]


def test_a_pickle_of_version_0_1_opens():
    text = pickle.dumps(tg.Assignment, protocol=0).replace(b"tokengraph.maps.hard", b"tokengraph.assignment")
    sys.modules.pop("tokengraph.assignment", None)
    with pytest.warns(DeprecationWarning, match="assignment has moved"):
        assert pickle.loads(text) is tg.Assignment


def test_a_name_that_never_was_is_still_not_found():
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        import_module("tokengraph.nowhere")
