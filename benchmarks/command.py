"""The one ``main`` of all benchmarks: options, threads, the environment's stamp, what is written and what is shown."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from harness import CLOCKS, Effort, environment, warn_if_busy
from report import Row, add_out, out_file, save_plot, show, write_json

Table = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, columns, cells


@dataclass(frozen=True)
class Result:
    """The results of a benchmark.

    Attributes:
        content: The content of the JSON file: ``rows`` and further facts.
        page: The Markdown page, without its title.
        tables: Tables for the terminal.
        lines: Lines under them.
        plot: A function of ``tokengraph.viz`` and its rows.
    """

    content: dict[str, Any]
    page: str
    tables: list[Table]
    lines: list[str] = field(default_factory=list)
    plot: tuple[str, Sequence[Row]] | None = None


@dataclass(frozen=True)
class Run:
    """What a benchmark is given: its options, where it runs, how hard to measure, and the environment's stamp."""

    args: argparse.Namespace
    device: torch.device
    effort: Effort
    record: dict[str, Any]

    @property
    def machine(self) -> str:
        """The processor, the threads, and the clock if it is another than usual."""
        clock = ", processor time" if self.record["clock"] == "processor" else ""
        return f"{self.record['device_name']}, {self.record['threads']} threads{clock}"

    @property
    def versions(self) -> str:
        """Python and the packages."""
        packages = ", ".join(f"{name} {version}" for name, version in self.record["versions"].items())
        return f"Python {self.record['python']}; {packages}"


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: what it is called, how hard it measures, and its cases.

    Attributes:
        name: Of the files that it writes.
        title: Of the page.
        doc: The docstring of its file; the first line is what ``--help`` says.
        measure: Yields a :class:`Result`, again after each part where a run takes long; each replaces the one before.
        full: Rounds and seconds, unless options say otherwise.
        quick: Rounds and seconds with ``--quick``, unless options say otherwise.
        options: Adds options of its own, or other defaults of the shared ones.
        quickly: What ``--quick`` does, for ``--help``.
    """

    name: str
    title: str
    doc: str | None
    measure: Callable[[Run], Iterator[Result]]
    full: Effort = Effort()
    quick: Effort = Effort(5, 20.0)
    options: Callable[[argparse.ArgumentParser], None] | None = None
    quickly: str = "few rounds"

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Runs it by the options of the command line, writes ``name.json`` and ``.md``, and shows the tables."""
        args = self.arguments(argv)
        if args.threads:
            torch.set_num_threads(args.threads)
        device = torch.device(args.device)
        usual = self.quick if args.quick else self.full
        if args.clock == "processor" and (device.type != "cpu" or torch.get_num_threads() > 1):
            raise SystemExit("Expected one thread of a CPU with --clock processor. Give --device cpu --threads 1.")
        effort = Effort(args.rounds or usual.rounds, args.seconds or usual.seconds, usual.block, args.clock)
        run = Run(args, device, effort, environment(device) | {"clock": args.clock})
        warn_if_busy()
        where = out_file(args.out, self.name, device)
        for result in self.measure(run):
            write_json(where, {"environment": run.record} | result.content)
            where.with_suffix(".md").write_text(f"# {self.title}\n\n{result.page}", encoding="utf-8")
            if result.plot is not None:
                save_plot(where.with_suffix(".png"), *result.plot)
        for table in result.tables:
            show(*table)
        beside = ".md" if result.plot is None else ".md and .png"
        print("\n".join([*result.lines, f"Written: {where}, and {beside} beside it"]))

    def arguments(self, argv: Sequence[str] | None = None) -> argparse.Namespace:
        """The shared options and those of this benchmark."""
        parser = argparse.ArgumentParser(description=(self.doc or "").splitlines()[0])
        full, quick = self.full, self.quick
        parser.add_argument("--quick", action="store_true", help=self.quickly)
        parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
        parser.add_argument("--rounds", type=int, help=f"at most, default {full.rounds}, quick {quick.rounds}")
        parser.add_argument(
            "--seconds",
            type=float,
            help=f"about how long a group may take, default {full.seconds:g}, {quick.seconds:g}",
        )
        parser.add_argument("--threads", type=int, help="CPU threads; default: all that torch takes")
        parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: for a busy machine, one thread")
        add_out(parser, self.name)
        if self.options is not None:
            self.options(parser)
        return parser.parse_args(argv)

    @property
    def notes(self) -> str:
        """What the docstring says behind its first line and how to run it."""
        return (self.doc or "").split("\n\n", 2)[2].strip()
