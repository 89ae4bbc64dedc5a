"""Measures the accuracy cost of every strategy with weights and data from packages. Repeat a command to resume it.

    python benchmarks/truth fetch      download packages into truth-data/ and check them; one failure stops no other
    python benchmarks/truth check      compare the rebuilt ViT-S/14 with its ONNX file
    python benchmarks/truth search     run every strategy, schedule and option on photographs (and the small ViT)
    python benchmarks/truth headline   run the best settings at each cost on whole sets
    python benchmarks/truth frontier   run the best and published settings of every strategy on 800 images a task
    python benchmarks/truth report     write the tables again
    python benchmarks/truth all        run the commands above in turn
    python benchmarks/truth curves     vary one parameter at a time, for defaults: on three kinds of images
    python benchmarks/truth plan       make plans on photographs and solar cells; compare with fixed settings, paired
    python benchmarks/truth realign    map features of solar cells back to dense ones, fitted on 30 to 640 images
    python benchmarks/truth floors     measure the fidelity of the small ViT at fixed settings again, for tests/truth

--tasks chooses tasks, so that two processes can share the work; --limit, --costs and --only make a smaller run.
The ViT-S/14 has official weights if their hub is reachable, else those of a package; --weights chooses.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Python puts a folder that it runs first on the path, where its modules would shadow others of the same names.
sys.path[:] = [str(HERE.parent), *(folder for folder in sys.path if not folder or Path(folder).resolve() != HERE)]

from truth.commands import COMMANDS, Choice  # noqa: E402
from truth.official import CHOICES  # noqa: E402
from truth.run import RESULTS, ROOT  # noqa: E402
from truth.tasks import TASKS  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="truth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("command", choices=COMMANDS)
    add("--data", type=Path, default=Path(os.environ.get("TRUTH_DATA") or ROOT / "truth-data"), help="or $TRUTH_DATA")
    add("--results", type=Path, default=RESULTS)
    add("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    add("--costs", nargs="+", type=float, help="shares of the dense cost; default: 0.35 0.5 0.65 0.8")
    add("--only", default="", help="a regular expression: only settings in which it is found")
    add("--limit", type=int, help="largest number of images a task")
    add("--weights", choices=CHOICES, help="weights of the ViT-S/14; default: $TRUTH_WEIGHTS or auto")
    add("--time", action="store_true", help="measure time and memory too (headline); on an idle machine only")
    add("--fresh", action="store_true", help="measure rows again that come from other code of the library")
    args = parser.parse_args(argv)
    if args.weights:
        os.environ["TRUTH_WEIGHTS"] = args.weights
    choice = Choice(args.data, args.results, args.tasks, args.costs, args.limit, args.time, args.fresh, args.only)
    return COMMANDS[args.command](choice)


if __name__ == "__main__":
    sys.exit(main())
