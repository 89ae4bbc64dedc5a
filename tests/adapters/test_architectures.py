"""Every law of ``attach`` over every architecture, and their list in the README."""

from pathlib import Path

import pytest
from architectures import IMAGES, cases, listing

from tokengraph.testing import MODEL_LAWS, check_model, tiny_vit

README = Path(__file__).parents[2] / "README.md"
CASES = cases()


@pytest.mark.parametrize("law", MODEL_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("case", CASES, ids="/".join)
def test_every_law_holds(case, law):
    try:
        CASES[case].make()
    except (ImportError, AttributeError) as error:  # not in this version of the library
        pytest.skip(str(error))
    law(CASES[case])


def test_check_model_names_the_law_that_is_broken():
    class Forgetful(type(tiny_vit())):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(x) + self.calls

    def make():
        model = tiny_vit()
        model.__class__ = Forgetful
        return model

    with pytest.raises(AssertionError, match="breaks the law 'is_bit_identical_while_nothing_is_removed'"):
        check_model(make, IMAGES)


def test_the_readme_lists_what_is_tested():
    assert len(CASES) >= 25
    assert " ".join(listing().split()) in " ".join(README.read_text(encoding="utf-8").split()), f"put in:\n{listing()}"
