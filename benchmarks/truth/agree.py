"""Compares the rebuilt model with the ONNX file: largest differences from onnxruntime on the same input."""

from __future__ import annotations

from pathlib import Path

import torch

from truth.saliency import saliency
from truth.weights import onnx_bytes, vit_s


def differences(folder: Path, seed: int = 0) -> dict[str, float]:
    """Returns the largest absolute differences of the tokens after the final norm and of the saliency map, at 224 px.

    Raises:
        ImportError: Without onnx and onnxruntime (extra "onnx").
        OSError: If the wheel is not in ``folder/packages``.
    """
    import onnx
    import onnxruntime

    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(seed))
    model = onnx.load_from_string(onnx_bytes(folder))
    norm = next(node.output[0] for node in reversed(model.graph.node) if node.name.startswith("/backbone/layernorm/"))
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(norm))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [session.get_outputs()[0].name, norm]
    theirs, tokens = (torch.from_numpy(v) for v in session.run(names, {session.get_inputs()[0].name: images.numpy()}))
    with torch.no_grad():
        ours = vit_s(folder).forward_features(images)
        grid = ours[:, 1:].transpose(1, 2).unflatten(2, (16, 16))
        shown = saliency(folder).map(grid)
    return {
        "tokens": (ours - tokens).abs().max().item(),
        "saliency": (shown.flatten() - theirs.flatten()).abs().max().item(),
    }
