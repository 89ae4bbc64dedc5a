"""ONNX files of attached models: what PyTorch's exporter does not translate by itself."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tokengraph.io.onnx_names import input_names as names_of_inputs
from tokengraph.io.onnx_names import output_names as names_of_outputs
from tokengraph.io.onnx_sums import index_add, index_put
from tokengraph.select.peaks.orphans import EPS

if TYPE_CHECKING:
    from torch.export import ExportedProgram

NEEDS = ("onnx", "onnxscript")


def to_onnx(
    model: nn.Module,
    *inputs: Tensor,
    path: str | os.PathLike[str] | None = None,
    dynamic_batch: bool = False,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Any:
    """Translates a model, with the strategy attached to it, to ONNX for inputs of these shapes, and writes the file.

    Sorts become ONNX's ``TopK``, which gives ties in the order of their index, as a stable sort does. Sums by cluster
    become ``ScatterElements``, which gives the same in every run, with any number of threads. AiluRus's search for
    anchors of tokens that see none is made for every token, as a graph cannot skip it.

    Args:
        model: In eval mode, with a strategy whose budget is fixed.
        *inputs: Images ``[B, 3, H, W]``, and the other tensors that the model is called with.
        path: The file to write, in a folder that exists; weights above 2 GB go to a second file beside it. ``None``
            writes none.
        dynamic_batch: The file takes any B, which every input has in front; give ``B >= 2`` here. Otherwise B is fixed.
        input_names: One an input. ``None``: the names in the model's ``forward``, and ``"images"`` for a first one
            that is only called ``x`` there.
        output_names: One an output tensor. ``None``: the fields of the model's output, such as ``"logits"``, and
            ``"output"`` for a model that returns one tensor.

    Returns:
        An ``ONNXProgram``; its ``.save("model.onnx")`` writes the file too, its ``.model_proto`` is what it holds.

    Raises:
        ImportError: Without onnx and onnxscript; names the extra.
        TypeError: For inputs that are no tensors.
        ValueError: For a dynamic batch of fewer than two images, a path without a folder, or a wrong number of names.

    Cost: seconds. For AiluRus the file computes ``B N K C`` floats more than the model.

    Example:
        >>> with tg.attach(model, "tome", 8):  # doctest: +SKIP
        ...     to_onnx(model, images, path="model.onnx", output_names=["logits"])
    """
    _check(inputs, path, dynamic_batch)
    program = _program(model, inputs, dynamic_batch)
    signature = program.graph_signature
    names_in = names_of_inputs(input_names, [str(name) for name in signature.user_inputs])
    names_out = names_of_outputs(output_names, program.call_spec.out_spec, len(signature.user_outputs))
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
        onnx_program: Any = torch.onnx.export(
            program,
            inputs,
            dynamo=True,
            input_names=names_in,
            output_names=names_out,
            dynamic_shapes=({0: "batch"},) * len(inputs) if dynamic_batch else None,
            custom_translation_table={torch.ops.aten.sort.stable: _sort},
        )
    _describe_weights_once(onnx_program)
    if path is not None:
        onnx_program.save(path)
    return onnx_program


def _check(inputs: Sequence[Tensor], path: str | os.PathLike[str] | None, dynamic_batch: bool) -> None:
    """Raises what can be known to fail before the seconds that an export takes."""
    for x in inputs:
        if not isinstance(x, Tensor):
            raise TypeError(f"Expected inputs that are tensors (got {type(x).__name__}). Name a file with path=.")
    if dynamic_batch and any(x.dim() == 0 or x.size(0) < 2 for x in inputs):
        sizes = ", ".join(str(list(x.shape)) for x in inputs)
        raise ValueError(f"Expected inputs of B >= 2 images for a dynamic batch (got {sizes}): export would fix B=1.")
    if path is not None and (not Path(path).parent.is_dir() or Path(path).is_dir()):
        raise ValueError(f"Expected a path to a file in a folder that exists (got {str(path)!r}).")
    for package in NEEDS:
        try:
            __import__(package)
        except ModuleNotFoundError as error:
            raise ImportError(
                f"Expected {package} to be installed (got no such package). "
                "Install it with: pip install 'tokengraph[onnx]'",
                name=package,
            ) from error


def _describe_weights_once(onnx_program: Any) -> None:
    """Takes out the second description of each weight, beside that in its data.

    onnxruntime's ``quantize_dynamic`` transposes weights, and then stumbles over the second one's old shape.
    """
    for weight in onnx_program.model.graph.initializers.values():
        weight.shape = weight.type = None


def _program(model: nn.Module, inputs: tuple[Tensor, ...], dynamic_batch: bool) -> ExportedProgram:
    """The model as a program of operators that ONNX has, or that have a translation here."""
    # DYNAMIC finds its own bounds: strategies that measure all distances at once have a largest batch.
    shapes = ({0: torch.export.Dim.DYNAMIC},) * len(inputs) if dynamic_batch else None
    # Of parameters that want gradients the decompositions make a backward pass wherever the graph turns gradients on.
    model = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        program = torch.export.export(model, inputs, dynamic_shapes=shapes)
        _describe_constants(program)
        program = program.run_decompositions({})  # first, as others expect no writing into views
        aten, own = torch.ops.aten, torch.ops.tokengraph
        return program.run_decompositions(
            {
                aten.diagonal_scatter.default: _diagonal_scatter,
                aten.index_add.default: index_add,
                aten.index_put.default: index_put,
                aten.kthvalue.default: _kthvalue,
                own.adopt_orphans.default: _adopt_orphans,
            }
        )


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
