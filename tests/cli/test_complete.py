"""Words that the shell completes, as argcomplete asks for them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("argcomplete")


def completed(line, folder):
    """Returns the words that the program offers behind a line."""
    file = folder / "words"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(file), "_ARGCOMPLETE_IFS": "\n"}
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    program = "import sys; sys.argv[0] = 'tokengraph'; from tokengraph.__main__ import main; main()"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, **asked, "PYTHONPATH": paths}, timeout=120)
    return [word.strip() for word in file.read_text().split("\n")]


@pytest.mark.slow
def test_shell_completes_commands_options_and_choices(tmp_path):
    assert {"graph", "plan", "eval", "bench", "check", "demo"} <= set(completed("tokengraph ", tmp_path))
    assert completed("tokengraph plan --pre", tmp_path) == ["--preserve"]
    assert completed("tokengraph plan m --preserve ", tmp_path) == ["class", "patches", "features", "logits"]
