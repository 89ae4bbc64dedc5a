"""A newcomer finds the way: large rooms list their files, the design notes list the rooms, and files stay short."""

import ast
import re
from pathlib import Path

import pytest

import tokengraph

ROOT = Path(tokengraph.__file__).parent
DESIGN = ROOT.parent / "docs" / "about" / "design.md"
MOST_LINES = 300
LARGE = 12  # files that a reader takes in at a glance
ROOMS = sorted(p.parent for p in ROOT.rglob("__init__.py") if p.parent != ROOT)
ONE_KIND = {"select", "cli"}  # every file is a method, or a command


def files(room: Path) -> set[str]:
    """The names of a room's files."""
    return {p.stem for p in room.glob("*.py")} - {"__init__"}


def unnamed(room: Path, names: set[str]) -> list[str]:
    page = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
    return sorted(name for name in names if not re.search(rf"\b{name}\b", page))


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.relative_to(ROOT).as_posix())
def test_every_room_says_what_lives_in_it(room):
    page = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    assert page and page.splitlines()[0].endswith(".")
    inside_parts = room.parent == ROOT / "select" / "parts"  # whose table names their files
    if len(files(room)) > LARGE and room.name not in ONE_KIND and not inside_parts:
        assert not unnamed(room, files(room)), "name these files in the docstring of the room's __init__"


def test_the_parts_of_methods_are_all_in_their_table():
    parts = ROOT / "select" / "parts"
    names = {name for room in parts.iterdir() if room.is_dir() for name in files(room)}
    assert not unnamed(parts, names)


def test_the_design_notes_list_every_room():
    page = DESIGN.read_text(encoding="utf-8")
    rooms = [room.name for room in ROOMS if room.parent == ROOT]
    assert [name for name in rooms if f"`{name}/`" not in page] == []


def test_files_stay_short():
    lines = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in ROOT.rglob("*.py")}
    assert {p.relative_to(ROOT).as_posix(): n for p, n in lines.items() if n > MOST_LINES} == {}
