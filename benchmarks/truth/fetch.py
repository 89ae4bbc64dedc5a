"""Fetches the packages of :mod:`truth.sources` into a folder, without root, unless they are there already.

Each source fails alone: the others are still fetched, and the list at the end says why one is missing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from truth.packages import sha256, unpack
from truth.sources import SOURCES, Source

Run = Callable[[Sequence[str], Path], str]


def command(words: Sequence[str], folder: Path) -> str:
    """Runs a package tool in ``folder`` and returns its output.

    Raises:
        OSError: If the tool is missing or fails; with the last line of its message.
    """
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise OSError(f"{words[0]} failed: {lines[-1]}")
    return done.stdout


def fetch(folder: Path, sources: Sequence[Source] = SOURCES, run: Run = command) -> dict[str, str]:
    """Brings every source into ``folder``.

    Args:
        folder: Package files lie in ``packages``, unpacked Debian packages in ``unpacked``.
        sources: Which ones.
        run: Runs a package tool; tests replace it.

    Returns:
        ``{name: reason}``; the reason is empty where the source is there.
    """
    reasons = {}
    for source in sources:
        try:
            _fetch_one(folder, source, run)
            reasons[source.name] = ""
        except (OSError, ValueError, ImportError) as error:
            reasons[source.name] = str(error)
    return reasons


def _fetch_one(folder: Path, source: Source, run: Run) -> None:
    if source.kind == "installed":
        try:
            version(source.name)
        except ImportError as error:
            raise ImportError(f"{source.name} is not installed. pip install {source.name}") from error
        return
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    path = packages / source.file
    if not (path.exists() and sha256(path) == source.sha256):
        path.unlink(missing_ok=True)
        _download(source, packages, run)
        check(path, source)
    if source.kind == "deb":
        _unpack_once(path, folder / "unpacked", source)


def _download(source: Source, packages: Path, run: Run) -> None:
    wanted = f"{source.name}={'=' if source.kind == 'wheel' else ''}{source.version}"
    if source.kind == "wheel":
        run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", wanted], packages)
        return
    try:
        run(["apt-get", "--quiet", "download", wanted], packages)
    except FileNotFoundError as error:
        raise OSError(f"apt-get is not on this machine. Put {source.file} into {packages} by hand.") from error
    except OSError:  # lists of packages are missing or old, and to renew the system's would need root
        lists = _own_lists(packages.parent / "apt")
        run(["apt-get", "--quiet", *lists, "update"], packages)
        run(["apt-get", "--quiet", *lists, "download", wanted], packages)


def _own_lists(folder: Path) -> list[str]:
    """Options for apt-get to keep its lists and cache in a folder of ours."""
    (folder / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    return ["-o", f"Dir::State::lists={folder.resolve() / 'lists'}", "-o", f"Dir::Cache={folder.resolve() / 'cache'}"]


def check(path: Path, source: Source) -> None:
    """Compares a fetched file with its checksum.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is another one. The file stays, under a name of its own, to be looked at.
    """
    if not path.exists():
        raise OSError(f"Expected {source.file} after the download (got no such file).")
    found = sha256(path)
    if found != source.sha256:
        path.rename(path.with_name(path.name + ".wrong"))
        raise ValueError(
            f"Expected sha256 {source.sha256} of {source.file} (got {found}). It may be cut off: run the command again."
        )


def _unpack_once(path: Path, folder: Path, source: Source) -> None:
    stamp = folder / f".{source.name}"  # written last: an unpacking that was cut off starts again
    if not (stamp.exists() and stamp.read_text() == source.sha256):
        unpack(path, folder)
        stamp.write_text(source.sha256)
