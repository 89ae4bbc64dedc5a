"""The files that ``to_onnx`` writes: where they go, what their inputs and outputs are called, and quantizing them."""

import pytest
import torch
from needs import library

import tokengraph as tg
from tokengraph.io.onnx import to_onnx
from tokengraph.testing import tiny_vit

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def names(file):
    run = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return [i.name for i in run.get_inputs()], [o.name for o in run.get_outputs()]


def outputs(file, images):
    run = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(y) for y in run.run(None, {run.get_inputs()[0].name: images.numpy()})]


@pytest.mark.slow
def test_to_onnx_writes_the_file_and_returns_the_program(tmp_path):
    model = tiny_vit()
    with tg.attach(model, "tome", 3), torch.no_grad():
        program = to_onnx(model, IMAGES, path=tmp_path / "model.onnx")
        wanted = model(IMAGES)
    program.save(str(tmp_path / "again.onnx"))
    for file in ("model.onnx", "again.onnx"):
        torch.testing.assert_close(outputs(tmp_path / file, IMAGES)[0], wanted, atol=1e-5, rtol=1e-4)
    assert names(tmp_path / "model.onnx") == (["images"], ["output"])
    assert [i.name for i in program.model_proto.graph.input] == ["images"]


@pytest.mark.slow
def test_to_onnx_takes_names(tmp_path):
    file, model = tmp_path / "model.onnx", tiny_vit()
    with tg.attach(model, "topk", {1: 0.5}):
        to_onnx(model, IMAGES, path=str(file), input_names=["pixels"], output_names=["logits"], dynamic_batch=True)
    assert names(file) == (["pixels"], ["logits"])
    assert onnx.load(file).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [y.shape for y in outputs(file, IMAGES[:1])] == [(1, 5)]


@pytest.mark.slow
def test_names_of_a_transformers_model_are_its_own(tmp_path):
    transformers = library("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8
    )
    model = transformers.ViTModel(config).eval()
    with tg.attach(model, "tome", 3):
        to_onnx(model, IMAGES, path=tmp_path / "model.onnx")
    assert names(tmp_path / "model.onnx") == (["pixel_values"], ["last_hidden_state", "pooler_output"])


@pytest.mark.slow
@pytest.mark.parametrize("select", [tg.ToMe(), tg.GTP(), tg.DPCKNN()], ids=["tome", "gtp", "dpc-knn"])
def test_quantize_dynamic_takes_the_file(select, tmp_path):
    quantization = pytest.importorskip("onnxruntime.quantization")
    model = tiny_vit()
    with tg.attach(model, select, {1: 0.75}), torch.no_grad():
        to_onnx(model, IMAGES, path=tmp_path / "model.onnx", dynamic_batch=True)
        wanted = model(IMAGES)
    quantization.quantize_dynamic(str(tmp_path / "model.onnx"), str(tmp_path / "int8.onnx"))
    got = outputs(tmp_path / "int8.onnx", IMAGES)[0]
    assert (tmp_path / "int8.onnx").stat().st_size < (tmp_path / "model.onnx").stat().st_size
    assert any(node.op_type == "MatMulInteger" for node in onnx.load(tmp_path / "int8.onnx").graph.node)
    assert got.shape == wanted.shape
    assert (got - wanted).norm() < 0.1 * wanted.norm()


def test_a_path_in_no_folder_is_refused_before_the_export(tmp_path):
    for path in (tmp_path / "missing" / "model.onnx", tmp_path):
        with pytest.raises(ValueError, match=r"Expected a path to a file in a folder that exists \(got "):
            to_onnx(tiny_vit(), IMAGES, path=path)


def test_a_path_among_the_inputs_is_refused():
    with pytest.raises(TypeError, match=r"Expected inputs that are tensors \(got str\)\. Name a file with path="):
        to_onnx(tiny_vit(), IMAGES, "model.onnx")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [{"input_names": ["a", "b"]}, {"output_names": "logits"}, {"output_names": []}])
def test_a_wrong_number_of_names_is_refused(wrong):
    (what,) = wrong
    with pytest.raises(ValueError, match=rf"Expected 1 different {what} in a list \(got "):
        to_onnx(tiny_vit(), IMAGES, **wrong)


class _FixedBatch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.token = torch.nn.Parameter(torch.zeros(1, 3, 4, 4))

    def forward(self, images):
        return images + self.token.expand(len(images), -1, -1, -1)  # len is a Python int: export fixes it


def test_to_onnx_says_where_a_model_fixes_its_number_of_images():
    with pytest.raises(ValueError, match=r"any number of images \(got one .* fixes to 2\)\. Write x\.size\(0\)"):
        to_onnx(_FixedBatch().eval(), torch.zeros(2, 3, 4, 4), dynamic_batch=True)
