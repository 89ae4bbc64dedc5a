"""Default names of ONNX inputs and outputs."""

from collections import OrderedDict

import pytest
from torch.utils import _pytree as pytree

from tokengraph.io.onnx_names import input_names, output_names


def of(output):
    leaves, spec = pytree.tree_flatten(output)
    return output_names(None, spec, len(leaves))


def test_names_of_inputs_are_those_of_forward_but_x():
    assert input_names(None, ["x", "mask"]) == ["images", "mask"]
    assert input_names(None, ["pixel_values"]) == ["pixel_values"]
    assert input_names(["a", "b"], ["x", "mask"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (1.0, ["output"]),
        ((1.0, 2.0), ["output_0", "output_1"]),
        ({"logits": 1.0}, ["logits"]),
        (OrderedDict(logits=1.0, hidden_states=(2.0, 3.0)), ["logits", "hidden_states_0", "hidden_states_1"]),
        ([1.0, {"boxes": 2.0}], ["output_0", "output_1_boxes"]),
        ((1.0, None), ["output_0", "output_1"]),
    ],
)
def test_names_of_outputs_are_those_of_their_fields(output, names):
    assert of(output)[: len(names)] == names[: len(of(output))]
    assert len(of(output)) == len(set(of(output))) == len(pytree.tree_flatten(output)[0])


def test_names_that_are_twice_the_same_are_refused():
    with pytest.raises(ValueError, match=r"Expected 2 different input_names in a list \(got \['a', 'a'\]\)"):
        input_names(["a", "a"], ["x", "mask"])
