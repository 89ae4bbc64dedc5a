"""Exports attached models to ONNX, with translations that PyTorch's exporter lacks."""

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
from tokengraph.select.parts.choices.agglomerate import all_rounds
from tokengraph.select.peaks.orphans import EPS, grid_squared

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
    """Exports a model, with its attached strategy, to ONNX for inputs of these shapes.

    Sorts become ONNX's ``TopK``, which orders ties by index, as a stable sort does. Sums by cluster become
    ``ScatterElements``, which gives the same result in every run and with any number of threads. AiluRus searches
    anchors for tokens that see none; the exported graph does this for every token, as it cannot branch.

    Args:
        model: In eval mode, with a strategy whose budget is fixed.
        *inputs: Images ``[B, 3, H, W]``, and the other tensors that the model is called with.
        path: The file to write, in an existing folder; weights above 2 GB go to a second file beside it. ``None``
            writes no file.
        dynamic_batch: Export for any B, the first axis of every input; give ``B >= 2`` here. If False, B is fixed.
        input_names: One name for each input. ``None``: the argument names of the model's ``forward``, but
            ``"images"`` if the first one is just ``x`` or similar.
        output_names: One name for each output tensor. ``None``: the fields of the model's output, such as
            ``"logits"``, and ``"output"`` for a model that returns one tensor.

    Returns:
        An ``ONNXProgram``; ``.save("model.onnx")`` writes it to a file, ``.model_proto`` is its content.

    Raises:
        ImportError: If onnx or onnxscript is missing; names the extra.
        TypeError: If an input is no tensor.
        ValueError: If a dynamic batch has fewer than two images, the model fixes its number of images, the folder of
            ``path`` does not exist, or names do not match.

    Cost: seconds. With AiluRus the exported graph computes ``B N K C`` more values than the model.

    Example:
        >>> with tg.attach(model, "tome", 8):  # doctest: +SKIP
        ...     to_onnx(model, images, path="model.onnx", output_names=["logits"])
    """
    _check(inputs, path, dynamic_batch)
    program = _program(model, inputs, dynamic_batch)
    signature = program.graph_signature
    names_in = names_of_inputs(input_names, [str(name) for name in signature.user_inputs])
    names_out = names_of_outputs(output_names, program.call_spec.out_spec, len(signature.user_outputs))
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):  # silences the exporter's progress report
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
    """Raises for known errors before the export, which takes seconds."""
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
    """Removes the separate shape and type of each weight, which its data has, too.

    onnxruntime's ``quantize_dynamic`` transposes weights, and then fails on the separate shape, which is outdated.
    """
    for weight in onnx_program.model.graph.initializers.values():
        weight.shape = weight.type = None


def _program(model: nn.Module, inputs: tuple[Tensor, ...], dynamic_batch: bool) -> ExportedProgram:
    """Exports the model to a program of operators that ONNX has, or that have a translation here."""
    # DYNAMIC lets export infer the bounds: strategies that compute all distances at once limit the batch size.
    shapes = ({0: torch.export.Dim.DYNAMIC},) * len(inputs) if dynamic_batch else None
    # If parameters require gradients, decompositions add a backward pass wherever the graph enables gradients.
    model = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        program = _export(model, inputs, shapes)
        _describe_constants(program)
        _check_operators(program)
        program = program.run_decompositions({})  # first: later decompositions expect no in-place writes into views
        aten, own = torch.ops.aten, torch.ops.tokengraph
        return program.run_decompositions(
            {
                aten.diagonal_scatter.default: _diagonal_scatter,
                aten.index_add.default: index_add,
                aten.index_put.default: index_put,
                aten.kthvalue.default: _kthvalue,
                own.adopt_orphans.default: _adopt_orphans,
                own.agglomerate.default: all_rounds,
            }
        )


def _export(model: nn.Module, inputs: tuple[Tensor, ...], shapes: Any) -> ExportedProgram:
    """Runs ``torch.export``, whose own error for a fixed number of images says nothing of where it comes from."""
    try:
        return torch.export.export(model, inputs, dynamic_shapes=shapes)
    except Exception as error:
        if shapes is None or "specialized" not in str(error):
            raise
        raise ValueError(
            "Expected a model that takes any number of images (got one that torch.export fixes to "
            f"{inputs[0].size(0)}). Write x.size(0) in its forward where it has len(x) or a number, or export with "
            "dynamic_batch=False."
        ) from error


def _check_operators(program: ExportedProgram) -> None:
    """Raises ValueError if a strategy on edges chooses in the program."""
    parts = [part for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]  # no_grad nests
    if any(node.target is torch.ops.tokengraph.cluster_tokens.default for p in parts for node in p.graph.nodes):
        raise ValueError(
            "Expected a strategy of operators that ONNX has (got one on edges, whose matchings depend on values: "
            "HeavyEdges, LocalVariation, Modularity or SpectralClustering). Take ToMe, DPCKNN or FarthestPoints; or "
            "torch.export, which keeps the operator."
        )


def _sort(self: Any, *, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
    """Translates ``aten::sort.stable`` to ``TopK`` over the whole axis."""
    import onnx
    from onnxscript import opset18

    op: Any = opset18
    boolean = self.dtype == onnx.TensorProto.BOOL
    keys = op.Cast(self, to=onnx.TensorProto.INT32) if boolean else self
    count = op.Gather(op.Shape(self), op.Constant(value_ints=[dim]), axis=0)
    values, order = op.TopK(keys, count, axis=dim, largest=int(descending), sorted=1)
    return (op.Cast(values, to=onnx.TensorProto.BOOL) if boolean else values), order


def _diagonal_scatter(x: Tensor, rows: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    """Computes ``aten::diagonal_scatter`` of square matrices; its own decomposition would write into a view."""
    if offset != 0 or x.size(dim1) != x.size(dim2):
        raise ValueError(f"Expected the main diagonal of square matrices (got offset {offset} of {list(x.shape)}).")
    whole = x.movedim((dim1, dim2), (-2, -1))
    eye = torch.eye(whole.size(-1), dtype=torch.bool, device=x.device)
    return torch.where(eye, rows[..., None], whole).movedim((-2, -1), (dim1, dim2))


def _kthvalue(x: Tensor, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """Computes ``aten::kthvalue`` by sorting."""
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
    """Runs :func:`~tokengraph.select.peaks.orphans.adopt_orphans` for every token; uses the result only for orphans."""
    images, patches, channels = x.shape
    patch = torch.arange(patches, device=x.device)
    by_distance = grid_squared(patch, patch[:, None], height, width).argsort(dim=1, stable=True)
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
    """Adds the metadata that decompositions need to cached tables, which enter the program as real tensors."""
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    guards: Any = importlib.import_module("torch._guards")
    mode = guards.detect_fake_mode([node.meta["val"] for node in nodes if "val" in node.meta])
    constants = program.graph_signature.inputs_to_lifted_tensor_constants
    for node in nodes:
        if "val" not in node.meta and node.name in constants and mode is not None:
            node.meta["val"] = mode.from_tensor(program.constants[constants[node.name]], static_shapes=True)
