"""Checks a built wheel: its size and files, and that the quickstart runs from it where the checkout cannot be imported.

python .ci/check_wheel.py dist             dependencies come from the environment that runs this
python .ci/check_wheel.py dist --install   they are installed too, into an empty environment (gigabytes)
"""

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 1_000_000  # bytes


def main(folder: str, install: bool) -> int:
    (wheel,) = Path(folder).glob("*.whl")
    size, names = wheel.stat().st_size, zipfile.ZipFile(wheel).namelist()
    assert size < LARGEST, f"Expected a wheel below {LARGEST:,} bytes (got {size:,})."
    foreign = [n for n in names if not n.startswith(("tokengraph/", "tokengraph-"))]
    assert not foreign and "tokengraph/py.typed" in names, f"Expected the package and its types alone (got {foreign})."
    with tempfile.TemporaryDirectory() as place:
        venv.create(place, with_pip=True)
        python = Path(place) / "bin" / "python"
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if install:
            command = [
                *pip,
                "--constraint",
                ROOT / "constraints.txt",
                f"tokengraph[timm,viz] @ {wheel.resolve().as_uri()}",
            ]
        else:
            command = [*pip, "--no-deps", wheel.resolve()]
            lent = "\n".join(folder for folder in sys.path if folder.endswith(("site-packages", "dist-packages")))
            site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"])
            # Dependencies are lent behind the wheel's folder, so an editable install of this checkout cannot win.
            (Path(site.decode().strip()) / "lent.pth").write_text(f"{lent}\n")
        subprocess.run(command, check=True)
        where = "import tokengraph; print(tokengraph.__version__, tokengraph.__file__)"
        told = subprocess.check_output([python, "-c", where], cwd=place, text=True).split()
        assert told[1].startswith(str(Path(place).resolve())), f"Expected the wheel's package (got {told[1]})."
        subprocess.run([python, ROOT / "examples" / "quickstart.py"], check=True, cwd=place)
    print(f"{wheel.name}: {size:,} bytes, {len(names)} files; the quickstart ran from it")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--install" in sys.argv))
