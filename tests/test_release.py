"""What a release consists of agrees with itself."""

import re
from pathlib import Path

import tokengraph

ROOT = Path(__file__).parent.parent


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_version_is_the_citations():
    assert re.search(r"^version: (\S+)$", text("CITATION.cff"), flags=re.M)[1] == tokengraph.__version__


def test_every_extra_that_the_makefile_installs_exists():
    extras = set(re.findall(r"^(\w+) = \[", text("pyproject.toml").partition("optional-dependencies]")[2], flags=re.M))
    asked = {name for names in re.findall(r"'\.\[([\w,]+)\]'", text("Makefile")) for name in names.split(",")}
    assert asked and asked <= extras


def test_pins_of_documentation_and_release_tools_are_complete():
    pinned = set(re.findall(r"^([\w.-]+)==", text("constraints.txt"), flags=re.M))
    assert {"mkdocs-material", "mkdocstrings", "mkdocstrings-python", "latex2mathml", "build", "twine"} <= pinned


def test_package_marks_its_types():
    assert (ROOT / "tokengraph" / "py.typed").exists() and "py.typed" in text("pyproject.toml")
