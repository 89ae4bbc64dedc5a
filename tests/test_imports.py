"""What importing tokengraph needs and does, each in a fresh interpreter."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import tokengraph

OPTIONAL = (
    "timm", "transformers", "torchvision", "torch_cluster", "torch_scatter", "torch_sparse", "torch_spline_conv",
    "pyg_lib", "onnx", "onnxscript", "onnxruntime", "matplotlib", "PIL", "rich", "sklearn", "skimage", "scipy",
    "networkx", "pandas", "open_clip",
)  # fmt: skip
# The whole way from tokens to a coarse graph and back.
USE = """
import torch
graph = tg.TokenGraph.from_tokens(torch.randn(2, 1 + 12, 8), (3, 4), num_prefix=1).connect_knn(3)
coarse, assignment = tg.coarsen(graph, "dpc-knn", 4)
print(coarse.counts, list(assignment.lift(coarse.x).shape))
"""


def run(code: str, *folders: Path) -> tuple[list[str], str]:
    """Runs code with folders in front of the path; returns the printed lines and what went to stderr."""
    here = [str(f) for f in (*folders, Path(tokengraph.__file__).parent.parent)]
    code = f"import sys\nsys.path[:0] = {here!r}\n" + textwrap.dedent(code)
    result = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines(), result.stderr


def test_import_adds_nothing_to_what_torch_geometric_imports():
    printed, _ = run(
        """
        import warnings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch_geometric.data, torch_geometric.utils
        before = {name.partition(".")[0] for name in sys.modules}
        import tokengraph
        after = {name.partition(".")[0] for name in sys.modules}
        print(sorted(after - before - sys.stdlib_module_names))
        """
    )
    assert printed == ["['tokengraph']"]


def test_import_and_use_need_only_the_hard_dependencies():
    printed, _ = run(
        f"""
        class Without:
            def __init__(self, finder):
                self.finder = finder

            def __getattr__(self, name):
                return getattr(self.finder, name)

            def find_spec(self, name, path=None, target=None):
                return None if name.partition(".")[0] in {OPTIONAL!r} else self.finder.find_spec(name, path, target)

        sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
        import tokengraph as tg
        print([name for name in {OPTIONAL!r} if name in sys.modules])
        print([b.name for b in tg.backends().values() if b.available])
        """
        + textwrap.indent(USE, " " * 8)
    )
    assert printed == ["[]", "['torch']", "[4, 4] [24, 8]"]


def test_import_and_use_survive_broken_extensions(tmp_path):
    for name in ("torch_cluster", "torch_scatter", "pyg_lib"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise OSError('{name}/_C.so: undefined symbol: _ZN3c106detail')")
    printed, stderr = run(
        """
        import tokengraph as tg
        for name, backend in list(tg.backends().items())[1:]:
            print(backend)
        for name in ("torch-cluster", "pyg-lib"):
            try:
                tg.knn_graph(__import__("torch").zeros(5, 2), 2, backend=name)
            except ImportError as error:
                print(error)
        """
        + textwrap.indent(USE, " " * 8),
        tmp_path,
    )
    reason = "broken: OSError: {}/_C.so: undefined symbol: _ZN3c106detail"
    modules = {"torch-cluster": "torch_cluster", "torch-scatter": "torch_scatter", "pyg-lib": "pyg_lib"}
    reasons = {name: reason.format(module) for name, module in modules.items()}
    assert printed == [
        *(f"{name}: no ({why})" for name, why in reasons.items()),
        *(f"Expected {name} to be usable (got {reasons[name]})." for name in ("torch-cluster", "pyg-lib")),
        "[4, 4] [24, 8]",
    ]
    assert "torch-cluster" not in stderr  # PyG's advice to remove it, which is wrong here


def test_custom_operators_give_their_schema():
    """torch 2.4 cannot infer one from the postponed annotations of this package, and then its import fails."""
    found = []
    for path in Path(tokengraph.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "custom_op":
                found.append((path.name, "schema" in {keyword.arg for keyword in node.keywords}))
    assert len(found) >= 3 and all(given for _, given in found), found
