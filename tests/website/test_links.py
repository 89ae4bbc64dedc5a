"""Links of pages, moved to where the site has them."""

from website.links import from_root, placed, targets


def test_from_root_moves_links_to_pages_of_the_site():
    text = "[a](docs/how/start.md), ![p](docs/img/life.svg), [c](CHANGELOG.md#added), [w](https://pyg.org)"
    assert from_root(text, "index.md") == (
        "[a](how/start.md), ![p](img/life.svg), [c](about/changelog.md#added), [w](https://pyg.org)"
    )


def test_from_root_turns_links_to_other_files_into_code():
    assert from_root("[MIT](LICENSE), [`x`](examples/quickstart.py)", "index.md") == "MIT (`LICENSE`), `x`"


def test_placed_leaves_links_inside_of_docs_and_moves_those_that_lead_out():
    text = "[a](idea.md), [readme](../../README.md), [f](../../Makefile)"
    assert placed(text, "how/start.md") == "[a](idea.md), [readme](../index.md), f (`../../Makefile`)"


def test_links_in_code_blocks_stay():
    text = "```\n[a](LICENSE)\n```"
    assert from_root(text, "index.md") == text and targets(text + "[b](c.md)") == ["c.md"]
