"""The program ``tokengraph``: finds the command, runs it, and turns errors into one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType

from tokengraph.cli import backends, bench, check, demo, graph, models, plan, strategies
from tokengraph.cli import eval as evaluation
from tokengraph.cli.own import import_own

COMMANDS: tuple[ModuleType, ...] = (demo, graph, plan, evaluation, bench, check, strategies, models, backends)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: The arguments after the program's name; by default those of this process.

    Returns:
        The exit status: 0, 1 after an error that the message explains, or 130 when the user stops it.
    """
    options = _parse(arguments)
    try:
        import_own(options.imports)
        status = options.run(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, such as head, has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        print(f"tokengraph: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"tokengraph: stopped. {getattr(options, 'resume', '')}".rstrip(), file=sys.stderr)
        return 130


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses arguments; settings may stand anywhere among the options, which argparse alone does not allow."""
    parser = _parser()
    _complete(parser)
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "settings") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.settings = [*options.settings, *rest]
    return options


def _complete(parser: argparse.ArgumentParser) -> None:
    """Completes words in the shell, which asks by a variable: eval "$(register-python-argcomplete tokengraph)"."""
    if "_ARGCOMPLETE" in os.environ and find_spec("argcomplete") is not None:
        from tokengraph.optional import optional

        optional("argcomplete").autocomplete(parser)


def _parser() -> argparse.ArgumentParser:
    from tokengraph import __version__

    parser = argparse.ArgumentParser(prog="tokengraph", description="Tokens of a vision transformer as a graph.")
    parser.add_argument("--version", action="version", version=f"tokengraph {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    for each in _leaves(parser):
        each.add_argument(
            "--import",
            dest="imports",
            metavar="FILE",
            action="append",
            default=[],
            help="a Python file or module with strategies or adapters of your own",
        )
    return parser


def _leaves(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """Returns the parsers of commands that have no commands below them."""
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return [leaf for a in below for one in a.choices.values() for leaf in _leaves(one)] if below else [parser]
