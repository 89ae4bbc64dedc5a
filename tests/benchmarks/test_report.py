"""What benchmarks write: where, checked before anything is measured."""

import argparse

import pytest
from report import add_out, out_file


@pytest.fixture
def parser():
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_out(parser, "speed")
    return parser


def test_results_go_where_they_are_asked_to_or_to_a_folder_of_the_device(parser, tmp_path):
    given = parser.parse_args(["--out", str(tmp_path / "new" / "mine.json")]).out
    assert out_file(given, "speed", "cpu") == tmp_path / "new" / "mine.json"
    default = out_file(parser.parse_args([]).out, "speed", "cpu")
    assert default.name == "speed.json" and default.parent.name.startswith("cpu-")


@pytest.mark.parametrize("name", ["", "folder.json", "table.md"])
def test_a_file_that_cannot_be_written_is_refused_at_once(parser, tmp_path, name):
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(argparse.ArgumentError, match="Expected a file that ends in .json"):
        parser.parse_args(["--out", str(tmp_path / name)])
