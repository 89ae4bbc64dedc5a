"""Checks the images and tokens that users pass to TokenGraph; errors say what to pass instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tokengraph.errors import check_tokens


def check_images(images: Any) -> None:
    """Raises unless this is a tensor, or a mapping of a model's inputs. Adapters check its values.

    Raises:
        TypeError: If it is anything else; the message says how to convert it.
    """
    if hasattr(images, "last_hidden_state"):
        raise TypeError(
            f"Expected images (got {type(images).__name__}, the output of a model). Build the graph from its tokens: "
            "TokenGraph.from_tokens(output.last_hidden_state, grid=(H, W), num_prefix=P)."
        )
    if isinstance(images, Tensor | Mapping):
        return
    if hasattr(images, "__array_interface__"):  # NumPy's arrays, and Pillow's images
        how = "Convert with torch.from_numpy(array).permute(0, 3, 1, 2), or load photographs with load_photo"
    else:
        how = "Make one batch of images of one size: torch.stack(images)"
    raise TypeError(
        f"Expected images as a Tensor [B, 3, H, W] (got {type(images).__name__}). {how}; then tokengraph.io.photo."
        "normalize(images, model)."
    )


def check_token_sets(tokens: Any) -> list[Tensor]:
    """Returns the tokens of each image, ``[P+N_b, C]``.

    Raises:
        ValueError: If shapes are wrong, or there is no image.
        TypeError: If these are not floating-point tensors.
    """
    if hasattr(tokens, "last_hidden_state") or isinstance(tokens, Mapping):
        raise TypeError(
            f"Expected tokens as a Tensor [B, P+N, C] (got {type(tokens).__name__}). Give the one tensor of the "
            "output that has them: output.last_hidden_state."
        )
    if not isinstance(tokens, Tensor) and (hasattr(tokens, "__array_interface__") or not isinstance(tokens, Sequence)):
        raise TypeError(
            f"Expected tokens as a Tensor or a list of Tensors (got {type(tokens).__name__}). Convert arrays with "
            "torch.from_numpy(array)."
        )
    if isinstance(tokens, Tensor):
        _check_batch(tokens)
        return list(tokens)
    if len(tokens) == 0:
        raise ValueError("Expected at least one image (got none).")
    for each in tokens:
        if isinstance(each, Tensor) and each.dim() != 2:
            raise ValueError(
                f"Expected a list of tokens of shape [M, C] (got {list(each.shape)}), one per image. Give a batch "
                "[B, P+N, C] by itself; of a tuple that a model returns, the part that has the tokens: output[0]."
            )
        check_tokens(each, dims=(2,), name="tokens")
    return list(tokens)


def _check_batch(tokens: Tensor) -> None:
    hints = {
        2: "Give one image as tokens[None].",
        4: "Of a feature map [B, C, H, W] make tokens: x.flatten(2).transpose(1, 2), with grid=(H, W).",
    }
    if tokens.dim() != 3:
        hint = hints.get(tokens.dim(), "")
        raise ValueError(f"Expected tokens of shape [B, N, C] (got {list(tokens.shape)}). {hint}".rstrip())
    check_tokens(tokens, name="tokens")
    if not tokens.size(0):
        raise ValueError("Expected at least one image (got none).")
