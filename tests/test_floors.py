"""The floor plan: a file imports its own room and rooms below it, and no files import each other in a circle."""

import ast
from pathlib import Path

import tokengraph

ROOT = Path(tokengraph.__file__).parent
# From the ground up; rooms of one line do not import each other. The face (__init__) may import everything.
FLOORS = [
    ["moved"],
    ["optional", "kinds"],
    ["compat"],
    ["flat"],
    ["errors"],
    ["maps"],
    ["edges"],
    ["attention"],
    ["nn"],
    ["cost"],
    ["schedule"],
    ["losses"],
    ["select"],
    ["adapters"],
    ["graph"],
    ["attach"],
    ["spatial", "windows", "packed"],
    ["vlm"],
    ["models"],
    ["io"],
    ["viz"],
    ["testing"],
    ["demo", "evaluate"],
    ["planning", "datasets"],
    ["cli"],
    ["__main__"],
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}
FILES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in ROOT.rglob("*.py")}


def imports(name: str) -> set[str]:
    """Files of the package that a file imports: at its top, inside functions and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tokengraph":
            for alias in node.names:
                long = f"{node.module}.{alias.name}"[len("tokengraph.") :]
                short = node.module[len("tokengraph.") :]
                found.add(next((n for n in (long, f"{long}.__init__", short, f"{short}.__init__") if n in FILES), ""))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                top, _, inner = alias.name.partition(".")
                if top == "tokengraph":
                    found.add(next((n for n in (inner, f"{inner}.__init__") if n in FILES), ""))
    return found - {""}


def room(name: str) -> str:
    return name.split(".")[0]


def test_every_room_has_a_floor():
    assert {room(name) for name in FILES} - {"__init__"} == set(LEVEL)


def test_imports_point_down():
    up = []
    for name in FILES:
        if room(name) != "__init__":
            for other in imports(name):
                if room(other) not in ("__init__", room(name)) and LEVEL[room(other)] >= LEVEL[room(name)]:
                    up.append(f"{name} -> {other}")
    assert up == []


def test_no_files_import_each_other_in_a_circle():
    graph = {name: imports(name) for name in FILES}
    left = set(graph)
    while True:  # peels off files that import none of those left, and files that none of those left imports
        wanted = set().union(*(graph[name] for name in left)) if left else set()
        ends = {name for name in left if not graph[name] & left or name not in wanted}
        if not ends:
            break
        left -= ends
    assert left == set()


def test_the_reader_of_imports_sees_lazy_ones_and_those_for_types():
    assert "adapters.__init__" in imports("graph.token_graph")  # inside TokenGraph.from_model
    assert "optional" in imports("flat.segment")  # inside a function
