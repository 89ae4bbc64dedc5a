"""DynamicViT's losses: published values and gradients, ragged batches, corner cases."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from needs import library
from torch import nn
from torch.testing import assert_close

from tokengraph.losses import DynamicViTLoss, distillation_loss, ratio_loss, teacher_outputs, token_distillation_loss
from tokengraph.testing import tiny_vit

FOLDER = Path(__file__).parent / "reference" / "dynamicvit"
PARTS = ("classification", "ratio", "distillation", "token")
VARIANTS = [(token, per, target) for token in (1, 0) for per in (0, 1) for target in ("ce", "soft")]


@pytest.fixture(scope="module")
def case() -> dict[str, torch.Tensor]:
    with np.load(FOLDER / "losses_vit.npz", allow_pickle=False) as file:
        return {k: torch.from_numpy(file[k]) for k in file.files}


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.abs().max())


def criterion(case, token: int = 1, per: int = 0, stages: int = 3, **options) -> DynamicViTLoss:
    ratios = case["keep_ratio"].tolist()[:stages]
    return DynamicViTLoss(ratios, token=("kl", "mse")[token], per=("graph", "batch")[per], **options)


def arguments(case, target: str = "ce", stages: int = 3) -> dict:
    return {
        "logits": case["pred"],
        "target": case["labels"] if target == "ce" else case["soft_labels"],
        "decisions": [case[f"dec_{s}"] for s in range(stages)],
        "tokens": case["token_pred"],
        "teacher": (case["teacher_pred"], case["teacher_token"]),
    }


@pytest.mark.parametrize(("token", "per", "target"), VARIANTS)
def test_loss_and_parts_are_the_published_ones(case, token, per, target):
    total, parts = criterion(case, token, per)(**arguments(case, target))
    variant = f"mse{token}_dyn{per}_{target}"
    got = torch.stack([parts[name] for name in PARTS])
    got[1] *= 3  # published: the sum over stages
    assert total.shape == ()
    assert error(total, case[f"loss_{variant}"]) < 2e-5
    for ours, theirs in zip(got, case[f"parts_{variant}"], strict=True):
        assert error(ours, theirs) < 2e-5


@pytest.mark.parametrize("token", [1, 0])
def test_gradients_are_the_published_ones(case, token):
    given = arguments(case)
    given["logits"], given["tokens"] = (given[k].clone().requires_grad_() for k in ("logits", "tokens"))
    given["decisions"] = [d.clone().requires_grad_() for d in given["decisions"]]
    total, parts = criterion(case, token)(**given)
    total.backward()
    assert not any(part.requires_grad for part in parts.values())
    assert error(given["logits"].grad, case[f"grad_pred_mse{token}_dyn0_ce"]) < 2e-4
    assert error(given["tokens"].grad, case[f"grad_token_mse{token}_dyn0_ce"]) < 2e-4
    for s, decision in enumerate(given["decisions"]):
        assert error(decision.grad, case[f"grad_dec_{s}_mse{token}_dyn0_ce"]) < 2e-4


def test_loss_of_a_batch_that_keeps_nothing_is_the_published_value_as_a_finite_scalar(case):
    given = arguments(case)
    given["decisions"] = [torch.zeros_like(d) for d in given["decisions"]]
    given["tokens"] = given["tokens"].clone().requires_grad_()
    total, parts = criterion(case)(**given)
    total.backward()
    assert total.shape == () and case["loss_zero_mask"].shape == (1,)
    assert error(total, case["loss_zero_mask"][0]) < 2e-5
    assert parts["token"].item() == 0
    assert not given["tokens"].grad.any()


def test_official_form_divides_by_three_however_many_stages_there_are(case):
    given = arguments(case, stages=2)
    official, theirs = criterion(case, stages=2, official=True)(**given)
    ours, parts = criterion(case, stages=2)(**given)
    # The stored value has its token term over the third mask.
    token = token_distillation_loss(case["token_pred"], case["teacher_token"], case["dec_2"])
    assert error(official + 0.5 * (token - theirs["token"]), case["loss_two_stage_default_loc"]) < 2e-5
    assert_close(parts["ratio"], theirs["ratio"] * 3 / 2)
    assert_close(ours - official, 2 * (parts["ratio"] - theirs["ratio"]))


# The ratio term.


def test_ratio_loss_is_the_mean_square_over_stages_and_images():
    decisions = [torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]), torch.tensor([[1.0, 0, 0, 0], [0.0] * 4])]
    assert ratio_loss(decisions, [0.5, 0.25]).item() == ((0.0625 + 0.0625) / 2 + (0 + 0.0625) / 2) / 2


def test_ratio_loss_is_zero_only_where_all_means_meet_their_targets():
    met, missed = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert ratio_loss([met], [0.5]).item() == 0
    assert ratio_loss([missed], [0.5]).item() == 0.25
    assert ratio_loss([missed], [0.5], per="batch").item() == 0  # the batch meets it


@pytest.mark.parametrize("per", ["graph", "batch"])
def test_ratio_loss_of_a_ragged_batch_counts_images_alike_and_empty_ones_not(per):
    flat, ptr = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0, 0.0]), torch.tensor([0, 2, 2, 6])
    expected = ((0.5 - 0.25) ** 2 + (0.75 - 0.25) ** 2) / 2 if per == "graph" else (0.625 - 0.25) ** 2
    assert ratio_loss([flat], [0.25], per=per, ptr=ptr).item() == pytest.approx(expected)


@pytest.mark.parametrize("per", ["graph", "batch"])
def test_ratio_loss_of_equal_images_is_the_same_flat_or_not(per):
    mask = (torch.rand(3, 5) > 0.5).float()
    flat = ratio_loss([mask.flatten()], [0.7], per=per, ptr=torch.arange(0, 16, 5))
    assert_close(flat, ratio_loss([mask], [0.7], per=per))


@pytest.mark.parametrize("per", ["graph", "batch"])
def test_ratio_loss_of_no_images_is_zero(per):
    mask = torch.zeros(0, 5, requires_grad=True)
    assert ratio_loss([mask], [0.7], per=per).item() == 0
    assert ratio_loss([torch.zeros(0)], [0.7], per=per, ptr=torch.tensor([0, 0])).item() == 0


def test_ratio_loss_in_half_precision_is_summed_in_float32():
    mask = torch.ones(1, 4096, dtype=torch.float16)
    mask[0, 0] = 0
    got = ratio_loss([mask], [1.0])
    assert got.dtype == torch.float32
    assert_close(got, torch.tensor(4096.0**-2))


# The teacher's terms.


def test_token_loss_counts_kept_tokens_only_and_no_gradient_reaches_mask_or_teacher():
    tokens = torch.tensor([[[1.0, 3.0], [9.0, 9.0]]], requires_grad=True)
    teacher, keep = torch.zeros(1, 2, 2, requires_grad=True), torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss = token_distillation_loss(tokens, teacher, keep)
    loss.backward()
    assert loss.item() == 5.0
    assert token_distillation_loss(tokens, teacher).item() == 43.0  # without a mask all count
    assert tokens.grad.tolist() == [[[1.0, 3.0], [0.0, 0.0]]]
    assert teacher.grad is None and keep.grad is None


def test_token_loss_does_not_see_what_dropped_tokens_hold():
    tokens = torch.tensor([[1.0], [torch.inf]], requires_grad=True)
    loss = token_distillation_loss(tokens, torch.zeros(2, 1), torch.tensor([1.0, 0.0]))
    assert loss.item() == 1.0


def test_token_loss_per_image_is_the_mean_of_what_each_image_has_alone():
    tokens, teacher = torch.randn(7, 4), torch.randn(7, 4)
    keep, ptr = torch.tensor([1.0, 0, 1, 0, 0, 1, 1]), torch.tensor([0, 3, 5, 5, 7])  # the second keeps nothing
    got = token_distillation_loss(tokens, teacher, keep, per="graph", ptr=ptr)
    alone = [token_distillation_loss(tokens[a:b], teacher[a:b], keep[a:b]) for a, b in [(0, 3), (5, 7)]]
    assert_close(got, (alone[0] + alone[1]) / 2)


def test_token_loss_by_divergence_is_that_of_the_softmax_from_the_teacher():
    tokens, teacher = torch.randn(1, 1, 6), torch.randn(1, 1, 6)
    p, q = teacher.softmax(-1), tokens.softmax(-1)
    assert_close(token_distillation_loss(tokens, teacher, kind="kl"), (p * (p / q).log()).sum())


def test_distillation_puts_the_teacher_first_and_sends_it_no_gradient():
    logits, teacher = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    p, q = teacher.softmax(-1), logits.softmax(-1)
    loss = distillation_loss(logits, teacher)
    loss.backward()
    assert_close(loss, (p * (p / q).log()).sum(dim=-1).mean())
    assert_close(logits.grad, (q - p).detach() / 2)
    assert teacher.grad is None


def test_losses_under_autocast_and_in_half_precision_are_float32(case):
    given = arguments(case)
    want, _ = criterion(case)(**given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = criterion(case)(**given)
    assert_close(total, want)
    half, _ = criterion(case)(**given | {"logits": given["logits"].half(), "tokens": given["tokens"].half()})
    assert half.dtype == torch.float32
    assert_close(half, want, atol=2e-3, rtol=0)


class Teacher(nn.Module):
    """Says whether it is in training, as logits; tokens as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.frozen = nn.Linear(2, 2), nn.Dropout()
        self.frozen.eval()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.full((x.size(0), 2), float(self.training)), self.inner(x)


def test_teacher_runs_in_eval_without_gradient_and_gets_its_mode_back_also_after_an_error():
    teacher = Teacher()
    logits, tokens = teacher_outputs(teacher, torch.randn(3, 4, 2, requires_grad=True))
    assert not logits.any() and not tokens.requires_grad
    with pytest.raises(RuntimeError):
        teacher_outputs(teacher, torch.randn(3, 4, 5))
    assert teacher.training and teacher.inner.training and not teacher.frozen.training


def test_loss_takes_the_teacher_as_module_or_as_tensors():
    teacher, x = Teacher(), torch.randn(3, 4, 2)
    loss = DynamicViTLoss([0.5])
    given = (torch.randn(3, 2), torch.tensor([0, 1, 1]), [torch.ones(3, 4)])
    module, _ = loss(*given, tokens=x, teacher=teacher, x=x)
    tensors, _ = loss(*given, tokens=x, teacher=teacher_outputs(teacher, x))
    assert torch.equal(module, tensors)


@pytest.mark.parametrize("token_per", ["batch", "graph"])
def test_loss_of_flat_tokens_takes_the_teacher_of_the_dense_batch(token_per):
    teacher, x = (torch.randn(2, 2), torch.randn(2, 3, 4)), torch.randn(2, 3, 4)
    keep, logits, target = torch.tensor([[1.0, 0, 1], [0.0, 1, 0]]), torch.randn(2, 2), torch.tensor([0, 1])
    loss = DynamicViTLoss([0.5], token_per=token_per)
    dense, _ = loss(logits, target, [keep], tokens=x, teacher=teacher)
    flat, _ = loss(
        logits, target, [keep.flatten()], tokens=x.flatten(0, 1), teacher=teacher, ptr=torch.tensor([0, 3, 6])
    )
    assert_close(flat, dense)


@pytest.mark.parametrize("token", ["mse", "kl"])
def test_loss_per_image_is_the_mean_of_what_processes_with_an_image_each_have(token):
    logits, target, tokens, teacher = (
        torch.randn(2, 5),
        torch.tensor([0, 3]),
        torch.randn(2, 4, 6),
        torch.randn(2, 4, 6),
    )
    keep = torch.tensor([[1.0, 1, 1, 0], [0.0, 1, 0, 0]])

    def of(rows: slice, per: str = "graph") -> torch.Tensor:
        theirs = logits[rows].flip(1), teacher[rows]
        loss = DynamicViTLoss([0.5], token=token, token_per=per)
        return loss(logits[rows], target[rows], [keep[rows]], tokens=tokens[rows], teacher=theirs)[0]

    each = (of(slice(0, 1)) + of(slice(1, 2))) / 2
    assert_close(of(slice(0, 2)), each)
    assert abs(of(slice(0, 2), "batch") - each) > 1e-3


def test_a_stock_model_as_teacher_gives_its_logits_and_normed_patch_tokens():
    library("timm")
    model = tiny_vit()
    x = torch.randn(2, 3, 32, 32)
    logits, tokens = teacher_outputs(model.train(), x)
    model.eval()
    assert torch.equal(logits, model(x))
    assert torch.equal(tokens, model.forward_features(x)[:, 1:])


def test_loss_without_a_teacher_or_with_weights_of_zero_leaves_terms_out(case):
    given = arguments(case)
    total, parts = criterion(case)(given["logits"], given["target"], given["decisions"])
    assert list(parts) == ["classification", "ratio"]
    assert_close(total, parts["classification"] + 2 * parts["ratio"])
    total, parts = criterion(case, weights={"token": 0, "classification": 0, "ratio": 5})(**given | {"tokens": None})
    assert list(parts) == ["ratio", "distillation"]
    assert_close(total, 5 * parts["ratio"] + 0.5 * parts["distillation"])


def test_loss_takes_another_classification_term(case):
    given = arguments(case)
    loss = criterion(case, classification=nn.CrossEntropyLoss(label_smoothing=0.1))
    _, parts = loss(**given)
    assert_close(parts["classification"], F.cross_entropy(case["pred"], case["labels"], label_smoothing=0.1))
    assert not list(loss.parameters())


def test_losses_refuse_what_does_not_fit(case):
    mask, x = torch.ones(1, 2), torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match=r"Expected ratios in \(0, 1\] \(got -0.1\)"):
        ratio_loss([mask], [-0.1])
    with pytest.raises(ValueError, match=r"Expected at least one ratio"):
        DynamicViTLoss([])
    with pytest.raises(ValueError, match=r"Expected one decision per ratio, S=2 \(got 1\)"):
        ratio_loss([mask], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"Expected per to be one of graph, batch \(got 'image'\)"):
        ratio_loss([mask], [0.5], per="image")
    with pytest.raises(ValueError, match=r"Expected masks of shape \[B, N\], or \[M\] with ptr"):
        ratio_loss([mask[0]], [0.5])
    with pytest.raises(ValueError, match=r"Expected token_per to be one of graph, batch \(got 'image'\)"):
        DynamicViTLoss([0.5], token_per="image")
    with pytest.raises(ValueError, match="of one shape"):
        token_distillation_loss(x, x[:, :1])
    with pytest.raises(ValueError, match=r"Expected keep of shape \[1, 2\] \(got \[1, 3\]\)"):
        token_distillation_loss(x, x, torch.ones(1, 3))
    with pytest.raises(ValueError, match=r"Expected kind to be one of mse, kl \(got 'l1'\)"):
        token_distillation_loss(x, x, kind="l1")
    with pytest.raises(ValueError, match="logits and teacher_logits of one shape"):
        distillation_loss(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="names of weights to be one of classification, ratio.* \\(got 'kl'\\)"):
        DynamicViTLoss([0.5], weights={"kl": 1})
    given = arguments(case)
    with pytest.raises(ValueError, match="Expected tokens of the student"):
        criterion(case)(**given | {"tokens": None})
    with pytest.raises(ValueError, match="Expected tokens of the teacher"):
        criterion(case)(**given | {"teacher": (case["teacher_pred"], None)})
    with pytest.raises(ValueError, match="Expected the images x"):
        criterion(case)(**given | {"teacher": Teacher()})


def test_loss_compiles_to_one_graph(case):
    given, loss = arguments(case), criterion(case)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert_close(compiled(**given)[0], loss(**given)[0])
