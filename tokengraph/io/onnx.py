"""ONNX files of attached models: what PyTorch's exporter does not translate by itself."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tokengraph.select.peaks.orphans import EPS

if TYPE_CHECKING:
    from torch.export import ExportedProgram

NEEDS = ("onnx", "onnxscript")


def to_onnx(
    model: nn.Module,
    *inputs: Tensor,
    path: str | PathLike[str] | None = None,
    dynamic_batch: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Any:
    """Translates a model, with the strategy attached to it, for inputs of these shapes.

    Sorts become ONNX's ``TopK``, which gives ties in the order of their index, as a stable sort does. AiluRus's search
    for anchors of tokens that see none is made for every token, as a graph cannot skip it.

    Args:
        model: In eval mode, with a strategy whose budget is fixed.
        *inputs: Images ``[B, 3, H, W]``, and the model's other positional inputs.
        path: Where to write the file; ``None``: nowhere.
        dynamic_batch: The file takes any B, which every input has in front; give ``B >= 2`` here. Otherwise B is fixed.
        input_names: Names of the file's inputs, one each; default: ``images``, or ``input_0``, ``input_1``, ...
        output_names: Names of its outputs; default: ``output``, or ``output_0``, ``output_1``, ...

    Returns:
        An ``ONNXProgram``; its ``.save(path)`` writes the file, too. onnxruntime's ``quantize_dynamic`` takes the file.

    Raises:
        ImportError: Without onnx and onnxscript; names the extra.
        ValueError: For a dynamic batch of fewer than two images, or another number of names than there are inputs or
            outputs.

    Cost: seconds. For AiluRus the file computes ``B N K C`` floats more than the model.

    Example:
        >>> with tg.attach(model, "tome", 8):  # doctest: +SKIP
        ...     to_onnx(model, images, path="model.onnx")
    """
    if dynamic_batch and any(x.dim() == 0 or x.size(0) < 2 for x in inputs):
        sizes = ", ".join(str(list(x.shape)) for x in inputs)
        raise ValueError(f"Expected inputs of B >= 2 images for a dynamic batch (got {sizes}): export would fix B=1.")
    for package in NEEDS:
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            raise ImportError(
                f"Expected {package} to be installed (got no such package). "
                "Install it with: pip install 'tokengraph[onnx]'",
                name=package,
            ) from error
    # DYNAMIC finds its own bounds: strategies that measure all distances at once have a largest batch.
    shapes = ({0: torch.export.Dim.DYNAMIC},) * len(inputs) if dynamic_batch else None
    # Of parameters that want gradients the decompositions make a backward pass wherever the graph turns gradients on.
    model = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        program = torch.export.export(model, inputs, dynamic_shapes=shapes)
        _describe_constants(program)
        program = program.run_decompositions({})  # first, as others expect no writing into views
        aten, own = torch.ops.aten, torch.ops.tokengraph
        program = program.run_decompositions(
            {
                aten.diagonal_scatter.default: _diagonal_scatter,
                aten.kthvalue.default: _kthvalue,
                own.adopt_orphans.default: _adopt_orphans,
                aten.index_add.default: _index_add,
                aten.index_put.default: _index_put,
            }
        )
        with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
            made: Any = torch.onnx.export(
                program, inputs, dynamo=True, custom_translation_table={torch.ops.aten.sort.stable: _sort}
            )
    _name(made.model.graph.inputs, input_names, "input", "images")
    _name(made.model.graph.outputs, output_names, "output", "output")
    if path is not None:
        made.save(path)
    return made


def _name(values: Sequence[Any], names: Sequence[str] | None, kind: str, single: str) -> None:
    """Names the inputs or outputs of a graph."""
    count = len(values)
    if names is None:
        names = [single] if count == 1 else [f"{kind}_{i}" for i in range(count)]
    if isinstance(names, str) or len(names) != count or len(set(names)) != count:
        raise ValueError(f"Expected {count} different {kind}_names (got {names!r}).")
    for value, name in zip(values, names, strict=True):
        value.name = name


def _sort(self: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """``aten::sort.stable`` by ``TopK`` over the whole axis."""
    import onnx
    from onnxscript import opset18

    op: Any = opset18
    boolean = self.dtype == onnx.TensorProto.BOOL
    keys = op.Cast(self, to=onnx.TensorProto.INT32) if boolean else self
    count = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]), axis=0)
    values, order = op.TopK(keys, count, axis=dim, largest=int(descending), sorted=1)
    return (op.Cast(values, to=onnx.TensorProto.BOOL) if boolean else values), order


def _diagonal_scatter(x: Tensor, rows: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """``aten::diagonal_scatter`` of square matrices without writing into a view, as its own decomposition does."""
    if offset != 0 or x.size(dim1) != x.size(dim2):
        raise ValueError(f"Expected the main diagonal of square matrices (got offset {offset} of {list(x.shape)}).")
    whole = x.movedim((dim1, dim2), (-2, -1))
    eye = torch.eye(whole.size(-1), dtype=torch.bool, device=x.device)
    return torch.where(eye, rows[..., None], whole).movedim((-2, -1), (dim1, dim2))


def _index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
    """``aten::index_add`` by ``scatter_add``, which becomes ``ScatterElements``.

    The exporter writes ``ScatterND`` with a reduction, whose kernel in onnxruntime loses updates of one row where
    several threads add to it.
    """
    dim %= max(x.dim(), 1)
    wide = index.view(*[1] * dim, -1, *[1] * (x.dim() - dim - 1)).expand_as(source)
    return x.scatter_add(dim, wide, source if alpha == 1 else source * alpha)


def _index_put(x: Tensor, indices: list[Tensor | None], values: Tensor, accumulate: bool = False) -> Tensor:
    """``aten::index_put`` that accumulates along the first axis, by ``scatter_add``; see :func:`_index_add`."""
    if not accumulate:
        return NotImplemented
    if len(indices) != 1 or indices[0] is None or indices[0].dim() != 1 or indices[0].dtype == torch.bool:
        raise ValueError(f"Expected sums by one index of rows (got {len(indices)} indices). Use index_add.")
    rows = values.expand(indices[0].numel(), *x.shape[1:])
    return _index_add(x, 0, indices[0], rows)


def _kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """``aten::kthvalue`` by sorting."""
    values, index = (t.narrow(dim, k - 1, 1) for t in x.sort(dim=dim, stable=True))
    return (values, index) if keepdim else (values.squeeze(dim), index.squeeze(dim))


def _adopt_orphans(
    center: Tensor,
    orphan: Tensor,
    x: Tensor,
    anchors: Tensor,
    height: int,
    width: int,
    lam: int,
    alpha: float,
    frames: int = 1,
) -> Tensor:
    """:func:`~tokengraph.select.peaks.orphans.adopt_orphans` for every token, kept for orphans alone."""
    images, patches, channels = x.shape
    patch = torch.arange(patches, device=x.device)
    place = (patch // (height * width), patch // width % height, patch % width)
    frame, row, column = ((along - along[:, None]).square() for along in place)
    by_distance = (frame + row + column).argsort(dim=1, stable=True)
    rank = torch.zeros_like(by_distance).scatter(1, by_distance, patch.expand_as(by_distance))
    theirs = anchors[:, None].expand(-1, patches, -1)
    rank = rank.expand(images, -1, -1).gather(2, theirs).float()
    rows = x.float().gather(1, anchors[..., None].expand(-1, -1, channels))
    distance = torch.linalg.vector_norm(rows[:, None] - x.float()[:, :, None], dim=3) * channels**-0.5
    sigma = (alpha + (1 - alpha) * rank / lam) * (distance + EPS)
    by_rank = rank.argsort(dim=2, stable=True)
    first = sigma.gather(2, by_rank).argmin(dim=2, keepdim=True)
    return torch.where(orphan, theirs.gather(2, by_rank.gather(2, first)).squeeze(2), center)


def _describe_constants(program: ExportedProgram) -> None:
    """Cached tables come into the program as real tensors without a description, which decompositions want."""
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    guards: Any = importlib.import_module("torch._guards")
    mode = guards.detect_fake_mode([node.meta["val"] for node in nodes if "val" in node.meta])
    constants = program.graph_signature.inputs_to_lifted_tensor_constants
    for node in nodes:
        if "val" not in node.meta and node.name in constants and mode is not None:
            node.meta["val"] = mode.from_tensor(program.constants[constants[node.name]], static_shapes=True)
