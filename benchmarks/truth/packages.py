"""Reads package files without installing them: unpacks Debian packages, opens wheels in place."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
from pathlib import Path


def sha256(path: Path) -> str:
    """Checksum of a file as hexadecimal digits, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for piece in iter(lambda: file.read(1 << 20), b""):
            digest.update(piece)
    return digest.hexdigest()


def unpack(deb: Path, folder: Path) -> None:
    """Unpacks a Debian package into ``folder``, by dpkg-deb if available, otherwise by Python.

    Raises:
        ValueError: If the file is no Debian package.
        OSError: If it cannot be read or written; of dpkg-deb, with its message.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.which("dpkg-deb"):
        done = subprocess.run(["dpkg-deb", "-x", str(deb), str(folder)], capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr.strip())
        return
    with tarfile.open(fileobj=io.BytesIO(_member(deb, "data.tar"))) as tar:
        tar.extractall(folder, filter="data")


def _member(deb: Path, start: str) -> bytes:
    """The first member of an ``ar`` archive whose name starts with ``start``."""
    content = deb.read_bytes()
    if not content.startswith(b"!<arch>\n"):
        raise ValueError(f"Expected a Debian package (got {deb}, no ar archive). Delete it and fetch it again.")
    at = 8
    while at + 60 <= len(content):  # a header of 60 bytes: name 16, ..., size 10 at 48; members start at even bytes
        name, size = content[at : at + 16].decode().strip(), int(content[at + 48 : at + 58])
        if name.startswith(start):
            return content[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise ValueError(f"Expected a member {start} in {deb} (got none). Delete the file and fetch it again.")
