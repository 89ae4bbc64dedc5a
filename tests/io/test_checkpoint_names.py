"""Prefixes, keys and averaged weights: what is taken is said, and can be chosen."""

import pytest
import torch
from torch import nn

from tokengraph.io.checkpoints import load_checkpoint


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.Linear(3, 3)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Linear(3, 2)


def weights(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {k: torch.full_like(v, value) for k, v in Model().state_dict().items()}


def behind(prefix: str, value: float = 1.0) -> dict[str, torch.Tensor]:
    return {f"{prefix}{k}": v for k, v in weights(value).items()}


PREFIXES = (
    *("module.", "_orig_mod.", "model.", "backbone.", "module._orig_mod.", "_orig_mod.module.", "encoder.", "teacher."),
    *("teacher.backbone.", "student.module.backbone.", "visual.trunk.", "model._orig_mod.", "_fsdp_wrapped_module."),
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("key", ["", "model", "state_dict"])
def test_load_checkpoint_takes_known_prefixes_off_and_says_so(key, prefix):
    model, state = Model(), behind(prefix)
    report = load_checkpoint(model, {key: state, "epoch": 3} if key else state)
    assert report.complete and report.prefix == prefix and report.key == key and not report.others
    assert f"prefix {prefix!r} taken off" in str(report) and model.head.weight.unique().tolist() == [1]


@pytest.mark.parametrize("inside", ["_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"])
def test_load_checkpoint_takes_wrappers_of_blocks_out_of_names(inside):
    state = {k.replace("blocks.0.", f"blocks.0.{inside}."): v for k, v in weights().items()}
    report = load_checkpoint(Model(), state)
    assert report.complete and report.prefix == "" and str(report) == "loaded 6 tensors"


def test_load_checkpoint_loads_into_models_that_are_wrapped_themselves():
    class Wrapped(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.add_module(name, Model())

    for name in ("module", "_orig_mod", "model", "backbone"):
        for prefix in ("", "module.", f"{name}."):
            wrapped = Wrapped(name)
            assert load_checkpoint(wrapped, behind(prefix)).complete
            assert next(wrapped.parameters()).unique().tolist() == [1]
    compiled = torch.compile(Model())
    assert load_checkpoint(compiled, weights()).complete and load_checkpoint(Model(), compiled.state_dict()).complete


def test_load_checkpoint_does_not_take_off_what_is_the_models_own():
    model = nn.ModuleDict({"model": Model(), "head": nn.Linear(3, 2)})
    report = load_checkpoint(model, {k: torch.ones_like(v) for k, v in model.state_dict().items()})
    assert report.complete and report.prefix == "" and len(report.loaded) == 8


@pytest.mark.parametrize("plain", ["model", "state_dict", "net", "model_state_dict"])
@pytest.mark.parametrize("ema", ["model_ema", "state_dict_ema", "ema", "ema_state_dict"])
def test_load_checkpoint_takes_plain_weights_and_names_the_averaged_ones(plain, ema):
    model, source = Model(), {ema: weights(2), plain: weights(1), "epoch": torch.tensor(3)}
    report = load_checkpoint(model, source)
    assert report.complete and (report.key, report.ema) == (plain, False) and model.head.bias.tolist() == [1, 1]
    assert report.others == [f"key={ema!r}"]
    assert str(report) == f"loaded 6 tensors from {plain!r}\nnot loaded: key={ema!r}"
    report = load_checkpoint(model, source, key=ema)
    assert report.complete and (report.key, report.ema) == (ema, True) and model.head.bias.tolist() == [2, 2]
    assert str(report) == f"loaded 6 tensors from {ema!r} (EMA weights)"


def test_load_checkpoint_takes_averaged_weights_where_there_are_no_others():
    report = load_checkpoint(Model(), {"state_dict_ema": behind("module.")})
    assert report.complete and report.ema and report.prefix == "module."


def test_load_checkpoint_tells_averaged_from_plain_weights_by_prefix():
    """As Lightning writes them: both in one state dict."""
    model, source = Model(), {"state_dict": {**behind("model_ema.", 2), **behind("model.", 1)}}
    report = load_checkpoint(model, source)
    assert report.complete and report.prefix == "model." and report.others == ["prefix='model_ema.'"]
    assert model.head.bias.tolist() == [1, 1]
    for prefix in ("model_ema.", "model_ema"):
        report = load_checkpoint(model, source, prefix=prefix)
        assert report.ema and report.prefix == "model_ema." and model.head.bias.tolist() == [2, 2]


def test_load_checkpoint_takes_the_teacher_before_the_student():
    report = load_checkpoint(Model(), {"student": behind("module.backbone."), "teacher": behind("backbone.", 2)})
    assert report.key == "teacher" and report.others == ["key='student'"]


def test_load_checkpoint_prefers_the_weights_that_fit():
    source = {"model": {"other": torch.ones(1)}, "state_dict": weights(), "head": torch.ones(3)}
    assert load_checkpoint(Model(), source).key == "state_dict"


def test_load_checkpoint_finds_dicts_in_dicts():
    report = load_checkpoint(Model(), {"state": {"model": weights(2), "optimizer": {"state": {0: torch.ones(2)}}}})
    assert report.complete and report.key == "state.model"


def test_load_checkpoint_wants_a_word_for_unknown_keys_and_prefixes():
    with pytest.raises(ValueError, match=r"under a known key \(got 'mine'\).*key='mine'"):
        load_checkpoint(Model(), {"mine": weights(), "model": {"other": torch.ones(1)}})
    assert load_checkpoint(Model(), {"mine": weights()}, key="mine").complete
    with pytest.raises(ValueError, match=r"behind 'my\.own\.'\).*prefix='my\.own\.'"):
        load_checkpoint(Model(), behind("my.own."))
    assert load_checkpoint(Model(), behind("my.own."), prefix="my.own").complete


def test_load_checkpoint_refuses_keys_and_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"key to be one of 'model' \(got 'ema'\)"):
        load_checkpoint(Model(), {"model": weights()}, key="ema")
    with pytest.raises(ValueError, match=r"shapes of Linear \(got weight of \[4, 4\] for \[2, 3\]\)"):
        load_checkpoint(nn.Linear(3, 2), {"weight": torch.ones(4, 4)})


def test_load_checkpoint_does_not_load_a_layer_from_any_other_of_its_name():
    with pytest.raises(ValueError, match="names of Linear"):
        load_checkpoint(nn.Linear(3, 3), {"blocks.0.attn.weight": torch.ones(3, 3)})
