"""Docstrings as Markdown."""

import pytest

from website.text import canonical, find, mathml, paragraphs, to_markdown


def test_to_markdown_turns_roles_into_code():
    text = "See :func:`tome`, :class:`~tokengraph.ToMe` and :meth:`words <tokengraph.Select.bind>`."
    assert to_markdown(text) == "See `tome`, `ToMe` and `words`."


def test_to_markdown_links_what_a_page_documents():
    assert to_markdown(":func:`tome`", lambda shown, name: f"[{shown}]({name})") == "[tome](tome)"


def test_to_markdown_replaces_formulas_and_keeps_the_text_around_them():
    pytest.importorskip("latex2mathml")
    text = to_markdown("Before.\n\n.. math::\n\n    a_i = \\frac{1}{2}\n\nAfter, :math:`x^2`.")
    assert text.startswith("Before.\n\n<math") and text.count("<math") == 2 and "After, " in text
    assert "math::" not in text and "<mfrac>" in text


def test_mathml_knows_arg_max():
    pytest.importorskip("latex2mathml")
    assert "\\" not in mathml(r"\arg\max_{j} a_j")


def test_paragraphs_splits_at_sections_and_finds_differs_inside_of_source():
    found = paragraphs(
        "First.\n\nMore.\n\nArgs:\n    x: Rows.\n\nCost: ``O(N)``\n\nSource: Paper, 2024. Differs: ties."
    )
    assert found[""] == "First.\n\nMore." and found["Cost"] == "``O(N)``"
    assert (found["Source"], found["Differs"]) == ("Paper, 2024.", "ties.")


def test_canonical_says_where_a_name_is_defined():
    assert canonical("tokengraph.ToMe") == "tokengraph.select.tome.ToMe"
    assert canonical("tome", "tokengraph.select.tome") == "tokengraph.select.tome.tome"
    assert canonical("nothing.of.this") == "" and find("tokengraph.nothing") is None
