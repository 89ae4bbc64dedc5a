"""What docstrings refer to is there."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import tokengraph

ROOT = Path(tokengraph.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
ROLE = re.compile(r":(?:py:)?(class|func|meth|mod|attr|data|exc|obj):`([^`]+)`")


def docstrings(tree):
    """Each docstring, those under assignments too, with the classes around it."""

    def walk(node, classes):
        inside = [*classes, node.name] if isinstance(node, ast.ClassDef) else classes
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
                if isinstance(child.value.value, str):
                    yield child.value.value, inside
            else:
                yield from walk(child, inside)

    yield from walk(tree, [])


def find(dotted):
    """The object of an absolute name: the longest module in it, then attributes."""
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            fields = getattr(found, "__dataclass_fields__", {}) | getattr(found, "__annotations__", {})
            if not hasattr(found, part) and part in fields:
                return fields[part]
            found = getattr(found, part)
        return found
    raise AttributeError(dotted)


def resolves(name, module, classes):
    """Whether a name leads anywhere: absolute, in the module, or in a class that the docstring stands in."""
    places = [name] + [".".join([module, *classes[:i], name]) for i in range(len(classes), -1, -1)]
    for place in places:
        try:
            find(place)
        except AttributeError:
            continue
        return True
    return False


def dangling(path):
    module = ".".join(("tokengraph", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
    names = [
        (name.split("<")[-1].rstrip(">").lstrip("~!"), classes)
        for text, classes in docstrings(ast.parse(path.read_text()))
        for _, name in ROLE.findall(text)
    ]
    return [name for name, classes in names if not resolves(name, module, classes)]


FOLDERS = sorted({path.parent for path in FILES})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings_refer_to_what_is_there(folder):
    found = {str(path.relative_to(ROOT)): dangling(path) for path in FILES if path.parent == folder}
    assert not {path: names for path, names in found.items() if names}


def test_dangling_finds_a_name_that_does_not_exist(tmp_path, monkeypatch):
    (tmp_path / "errors.py").write_text('class A:\n    """See :class:`~tokengraph.Trace`, :func:`check_finite`."""\n')
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert dangling(tmp_path / "errors.py") == ["tokengraph.Trace"]


def test_docstrings_finds_those_of_modules_classes_functions_and_fields():
    text = '"""a"""\nclass A:\n    """b"""\n    x: int\n    """c"""\n    def f(self):\n        """d"""\n'
    assert list(docstrings(ast.parse(text))) == [("a", []), ("b", ["A"]), ("c", ["A"]), ("d", ["A"])]
    assert sum(len(ROLE.findall(text)) for path in FILES for text, _ in docstrings(ast.parse(path.read_text()))) > 100
