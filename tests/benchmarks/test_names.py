"""Benchmarks and shared test files are imported by bare name in one run, so no name may stand for two files."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


def names(folder):
    """The names that `import` finds in a folder on the path: files, and folders with an `__init__.py`."""
    return {p.stem for p in folder.glob("*.py")} | {p.parent.name for p in folder.glob("*/__init__.py")}


def test_no_benchmark_has_the_name_of_a_shared_test_file():
    benchmarks, cases = names(ROOT / "benchmarks"), names(ROOT / "tests" / "cases")
    assert {"harness", "truth"} <= benchmarks and "vlm_models" in cases
    assert benchmarks & cases == set()
