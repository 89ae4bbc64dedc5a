"""Docstrings, messages, comments and pages use plain English, without phrases that readers had to read twice."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

import tokengraph

ROOT = Path(tokengraph.__file__).parent
REPOSITORY = ROOT.parent
BANNED = re.compile(
    r"\b("
    r"whatever|whoever|whomever|by whom|nobody|somebody|everybody|"
    r"of now|what (is|was) left|what (becomes|became) of|as they came|"
    r"tokens that are (there|left)|batch mates"
    r")\b",
    flags=re.IGNORECASE,
)
FOLDERS = sorted({p.relative_to(ROOT).parts[0] for p in ROOT.rglob("*.py") if p.parent != ROOT})


def texts(source: str) -> list[tuple[int, str]]:
    """Every string and comment with its line; comments on adjacent lines are one text."""
    found = [
        (node.lineno, node.value)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            line, words = token.start[0], token.string.lstrip("#")
            if line == last + 1:
                line, words = found[-1][0], f"{found.pop()[1]} {words}"
            found.append((line, words))
            last = token.start[0]
    return found


def banned(path: Path) -> list[str]:
    """Every banned phrase of a file as ``file:line: phrase``; line breaks count as spaces."""
    text = path.read_text(encoding="utf-8")
    pieces = texts(text) if path.suffix == ".py" else [(1, text)]
    return [
        f"{path.name}:{line}: {match[0]}"
        for line, words in pieces
        for match in BANNED.finditer(" ".join(words.split()))
    ]


@pytest.mark.parametrize("folder", FOLDERS)
def test_folder_has_no_banned_phrase(folder):
    assert [found for path in sorted((ROOT / folder).rglob("*.py")) for found in banned(path)] == []


def test_modules_at_the_root_have_no_banned_phrase():
    assert [found for path in sorted(ROOT.glob("*.py")) for found in banned(path)] == []


def test_pages_examples_benchmarks_and_tests_have_no_banned_phrase():
    pages = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").rglob("*.md")]
    scripts = [p for d in ("examples", "benchmarks", "website", "tests") for p in (REPOSITORY / d).rglob("*.py")]
    files = [path for path in (*pages, *scripts) if path != Path(__file__)]  # this one holds the phrases
    assert [found for path in files for found in banned(path)] == []


def test_banned_finds_phrases_in_docstrings_messages_and_comments(tmp_path):
    file = tmp_path / "some.py"
    file.write_text(
        '"""The tokens of\nnow."""\n# Comments about what\n# is left.\nx = 1\nraise ValueError(f"Whatever {x}")\n'
    )
    assert sorted(banned(file)) == ["some.py:1: of now", "some.py:3: what is left", "some.py:6: Whatever"]
