"""What defines an operator schema runs in a fresh process: in this one it could not be taken back."""

import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

import tokengraph.compat

OPTIONAL = ("timm", "torchvision")

# Does what torchvision's import does: it leaves a submodule behind, then describes operators that may not exist.
FAKE_TORCHVISION = """
import torch
from torchvision import extension

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.long)

@torch.library.register_fake("torchvision::qnms")
def qnms(dets, scores, iou_threshold):
    return dets.new_empty(0, dtype=torch.long)
"""
# Counts how often it was loaded, in torch, which outlives both attempts.
FAKE_EXTENSION = """
import torch
torch.fake_loads = loads = getattr(torch, "fake_loads", 0) + 1
"""
# An empty parent package with the real path: tokengraph.compat alone, without what tokengraph itself imports.
ALONE = f"""
import sys, types
sys.modules["tokengraph"] = types.ModuleType("tokengraph")
sys.modules["tokengraph"].__path__ = [{str(Path(tokengraph.compat.__file__).parent)!r}]
"""


def run(code: str, prelude: str = "") -> list[str]:
    """Runs code in a fresh interpreter and returns the lines that it printed."""
    code = prelude + textwrap.dedent(code)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def write_package(root: Path, name: str, **files: str) -> None:
    (root / name).mkdir()
    for stem, text in files.items():
        (root / name / f"{stem}.py").write_text(text)


@pytest.fixture
def fake_torchvision(tmp_path) -> str:
    """Code that puts a torchvision with missing operators before the installed one."""
    write_package(tmp_path, "torchvision", __init__=FAKE_TORCHVISION, extension=FAKE_EXTENSION)
    return ALONE + f"sys.path.insert(0, {str(tmp_path)!r})\n"


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A folder whose packages come before the installed ones, with timm and torchvision not imported yet."""

    def take_out():
        names = [name for name in sys.modules if name.partition(".")[0] in OPTIONAL]
        return {name: sys.modules.pop(name) for name in names}

    imported = take_out()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    take_out()
    sys.modules.update(imported)


def test_import_tokengraph_compat_imports_nothing_optional():
    names = (*OPTIONAL, "transformers")
    printed = run(  # torch-geometric imports transformers where it is installed
        f"""
        import sys, torch_geometric.data
        before = set(sys.modules)
        import tokengraph.compat
        print([name for name in {names} if name in set(sys.modules) - before])
        """
    )
    assert printed == ["[]"]


@pytest.mark.skipif(find_spec("timm") is None, reason="needs timm")
def test_timm_runs_a_model_with_the_installed_torchvision():
    printed = run(
        """
        import torch
        from tokengraph.compat import timm
        model = timm.create_model("vit_tiny_patch16_224", depth=1)
        print(list(model(torch.zeros(1, 3, 224, 224)).shape))
        """
    )
    assert printed == ["[1, 1000]"]


def test_ensure_torchvision_cures_missing_operators(fake_torchvision):
    printed = run(
        """
        import torch
        from tokengraph.compat import ensure_torchvision
        torchvision = ensure_torchvision()
        print(torchvision is sys.modules["torchvision"], torchvision is ensure_torchvision())
        for name in ("nms", "qnms"):
            print(getattr(torch.ops.torchvision, name).default._schema)
        """,
        fake_torchvision,
    )
    arguments = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    assert printed == ["True True", "torchvision::nms" + arguments, "torchvision::qnms" + arguments]


@pytest.mark.slow
def test_ensure_torchvision_recovers_from_an_import_that_failed_before(fake_torchvision):
    printed = run(
        """
        try:
            import torchvision
        except RuntimeError as error:
            print(error)
        print("torchvision.extension" in sys.modules)
        from tokengraph.compat import ensure_torchvision
        print(ensure_torchvision().extension.loads)
        """,
        fake_torchvision,
    )
    # The first load served both failed imports; the third import started from nothing.
    assert printed == ["operator torchvision::nms does not exist", "True", "2"]


@pytest.mark.slow
def test_ensure_torchvision_keeps_operators_that_other_code_defined(fake_torchvision):
    printed = run(
        """
        import torch
        other = torch.library.Library("torchvision", "DEF")
        other.define("nms(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
        from tokengraph.compat import ensure_torchvision
        ensure_torchvision()
        print(torch.ops.torchvision.nms.default._schema.arguments[0].name)
        """,
        fake_torchvision,
    )
    assert printed == ["boxes"]


def test_ensure_torchvision_defines_nothing_where_the_import_works(packages, monkeypatch):
    write_package(packages, "torchvision", __init__="version = 'fine'")
    monkeypatch.setattr(tokengraph.compat, "_define_schemas", lambda: pytest.fail("defined schemas"))
    assert tokengraph.compat.ensure_torchvision().version == "fine"


@pytest.mark.parametrize("error", [RuntimeError("broken build"), OSError("undefined symbol")])
def test_ensure_torchvision_passes_other_errors_on(packages, monkeypatch, error):
    write_package(packages, "torchvision", __init__=f"raise {error!r}")
    monkeypatch.setattr(tokengraph.compat, "_define_schemas", lambda: pytest.fail("defined schemas"))
    with pytest.raises(type(error), match=f"^{error}$"):
        tokengraph.compat.ensure_torchvision()


@pytest.mark.parametrize("package", OPTIONAL)
def test_timm_names_the_extra_where_a_package_is_absent(packages, package):
    write_package(packages, "torchvision", __init__="")
    sys.modules[package] = None  # type: ignore[assignment]  # the import system's own mark of "not there"
    message = rf"Expected {package} to be installed \(got no such package\)\. .*pip install 'tokengraph\[timm\]'"
    with pytest.raises(ImportError, match=message):
        from tokengraph.compat import timm  # noqa: F401


def test_timm_names_what_an_installed_timm_misses(packages):
    write_package(packages, "torchvision", __init__="")
    write_package(packages, "timm", __init__="import a_package_that_timm_needs")
    with pytest.raises(ImportError, match="^No module named 'a_package_that_timm_needs'$"):
        from tokengraph.compat import timm  # noqa: F401


def test_compat_has_no_other_lazy_names():
    with pytest.raises(AttributeError, match="^module 'tokengraph.compat' has no attribute 'tim'$"):
        tokengraph.compat.tim  # noqa: B018
