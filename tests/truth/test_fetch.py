"""Fetching: checksums, resumption, and sources that fail alone."""

import hashlib
import io
import subprocess
import tarfile

import pytest
from truth import packages
from truth.fetch import check, command, fetch
from truth.packages import sha256, unpack
from truth.sources import SOURCES, Source

GOOD = b"the right bytes"
WHEEL = Source("some-data", "wheel", "1.0", "some_data-1.0.whl", hashlib.sha256(GOOD).hexdigest())
OTHER = Source("other-data", "wheel", "2.0", "other_data-2.0.whl", hashlib.sha256(GOOD).hexdigest())


class Tool:
    """Stands for pip and apt-get: writes what each package would bring, and remembers what it was asked."""

    def __init__(self, brings):
        self.brings, self.asked = brings, []

    def __call__(self, words, folder):
        self.asked.append(list(words))
        for name, (file, content) in self.brings.items():
            if words[-1].startswith(name):
                if isinstance(content, Exception):
                    raise content
                (folder / file).write_bytes(content)
        return ""


def deb(name="usr/share/a.txt", content=b"hello"):
    """A Debian package with one file."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz") as archive:
        about = tarfile.TarInfo(name)
        about.size = len(content)
        archive.addfile(about, io.BytesIO(content))
    made = b"!<arch>\n"
    for member, data in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", tar.getvalue())):
        made += (
            f"{member:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
        )
    return made


def test_fetch_brings_what_is_missing_and_nothing_twice(tmp_path):
    tool = Tool({"some-data": (WHEEL.file, GOOD)})
    assert fetch(tmp_path, [WHEEL], tool) == {"some-data": ""}
    assert tool.asked[0][-1] == "some-data==1.0"
    assert fetch(tmp_path, [WHEEL], tool) == {"some-data": ""} and len(tool.asked) == 1


def test_fetch_takes_a_file_that_was_cut_off_for_missing(tmp_path):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / WHEEL.file).write_bytes(GOOD[:4])
    tool = Tool({"some-data": (WHEEL.file, GOOD)})
    assert fetch(tmp_path, [WHEEL], tool) == {"some-data": ""} and len(tool.asked) == 1


def test_fetch_lets_each_source_fail_alone_with_its_reason(tmp_path):
    tool = Tool({"some-data": (WHEEL.file, OSError("no route to host")), "other-data": (OTHER.file, GOOD)})
    found = fetch(tmp_path, [WHEEL, OTHER, Source("not-here", "installed", "nothing")], tool)
    assert found["some-data"] == "no route to host" and found["other-data"] == ""
    assert "pip install not-here" in found["not-here"]


def test_fetch_refuses_other_bytes_and_keeps_them_aside(tmp_path):
    found = fetch(tmp_path, [WHEEL], Tool({"some-data": (WHEEL.file, b"other bytes")}))
    assert "Expected sha256" in found["some-data"]
    assert [p.name for p in (tmp_path / "packages").iterdir()] == [WHEEL.file + ".wrong"]


def test_check_says_that_no_file_came(tmp_path):
    with pytest.raises(OSError, match="no such file"):
        check(tmp_path / WHEEL.file, WHEEL)


def test_fetch_makes_its_own_lists_where_the_system_has_none(tmp_path):
    content = deb()
    source = Source("drawings", "deb", "1:2-3", "drawings_1%3a2-3_all.deb", hashlib.sha256(content).hexdigest())

    class Apt(Tool):
        def __call__(self, words, folder):
            if "update" not in words and "-o" not in words:
                self.asked.append(list(words))
                raise OSError("apt-get failed: E: Unable to locate package drawings")
            return super().__call__(words, folder)

    tool = Apt({"drawings": (source.file, content)})
    assert fetch(tmp_path, [source], tool) == {"drawings": ""}
    assert [words[-1] for words in tool.asked] == ["drawings=1:2-3", "update", "drawings=1:2-3"]
    assert (tmp_path / "unpacked/usr/share/a.txt").read_bytes() == b"hello"


def test_fetch_unpacks_again_what_was_cut_off(tmp_path):
    content = deb()
    source = Source("drawings", "deb", "1", "drawings.deb", hashlib.sha256(content).hexdigest())
    tool = Tool({"drawings": (source.file, content)})
    fetch(tmp_path, [source], tool)
    (tmp_path / "unpacked/usr/share/a.txt").unlink()
    (tmp_path / "unpacked/.drawings").unlink()  # the stamp of a finished unpacking
    fetch(tmp_path, [source], tool)
    assert (tmp_path / "unpacked/usr/share/a.txt").exists() and len(tool.asked) == 1


def test_unpack_needs_no_dpkg(tmp_path, monkeypatch):
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    (tmp_path / "a.deb").write_bytes(deb(content=b"odd"))
    unpack(tmp_path / "a.deb", tmp_path / "out")
    assert (tmp_path / "out/usr/share/a.txt").read_bytes() == b"odd"
    (tmp_path / "b.deb").write_bytes(b"no archive")
    with pytest.raises(ValueError, match="no ar archive"):
        unpack(tmp_path / "b.deb", tmp_path / "out")


def test_command_raises_with_the_last_line_of_the_message(tmp_path):
    with pytest.raises(OSError, match="sh failed: second"):
        command(["sh", "-c", "echo first >&2; echo second >&2; exit 3"], tmp_path)


def test_sources_have_checksums_and_licences():
    for source in SOURCES:
        assert source.licence and source.use
        assert source.kind == "installed" or len(source.sha256) == 64 and source.version.split(":")[-1] in source.file


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(GOOD)
    assert sha256(tmp_path / "a") == WHEEL.sha256


def test_no_fetched_file_is_tracked_by_git(pytestconfig):
    done = subprocess.run(["git", "ls-files"], cwd=pytestconfig.rootpath, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git repository")
    assert not [line for line in done.stdout.splitlines() if line.startswith("truth-data/") or "elpv_dataset" in line]
