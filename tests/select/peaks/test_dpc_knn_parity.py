"""DPC-KNN against vectors computed with TCFormer's own code (see tests/reference/dpc_knn/README.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tokengraph import Assignment, dpc_knn
from tokengraph.select.peaks.dpc_knn_parity import dpc_knn_parity

FOLDER = Path(__file__).parents[2] / "reference" / "dpc_knn"
PLAIN = ["01_basic", "03_masked_ragged", "04_masked_holes_noweight", "05_blobs", "06_integer_exact", "08_kN_M1",
         "12_no_noise"]  # fmt: skip


def load(name: str) -> dict[str, torch.Tensor]:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {k: torch.from_numpy(file[k]) for k in file.files}


def stages() -> list[tuple[str, dict[str, torch.Tensor]]]:
    """Every stage as a case of its own; the second of 14 runs on the stored result of the first."""
    cases = [(name, load(name)) for name in PLAIN]
    two = load("14_two_stage")
    for stage in "12":
        case = {k[:-1]: v for k, v in two.items() if k.endswith(stage)}
        case["x"] = two["x"] if stage == "1" else two["x_merged1"]
        cases.append((f"14_two_stage_{stage}", case))
    return cases


CASES = dict(stages())


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    return CASES[request.param] | {"name": request.param}  # type: ignore[dict-item]


def run(case: dict[str, torch.Tensor]):
    return dpc_knn_parity(
        case["x"], int(case["cluster_num"]), k=int(case["k"]), mask=case.get("token_mask"), noise=case["noise"]
    )


def center_tokens(cluster: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
    return centers.gather(1, cluster)


def test_dpc_knn_parity_gives_the_published_distances_densities_and_scores(case):
    got, blobs = run(case), str(case["name"]).startswith("05")
    real = case["token_mask"] > 0 if "token_mask" in case else torch.ones(case["x"].shape[:2], dtype=torch.bool)
    off = ~torch.eye(case["x"].size(1), dtype=torch.bool)
    torch.testing.assert_close(got.distance[:, off], case["dist_matrix"][:, off], atol=1e-4 if blobs else 1e-5, rtol=0)
    # The reference's own distances to themselves are not 0 for N > 25 (product form); exact zeros are right.
    on = got.distance.diagonal(dim1=1, dim2=2)
    assert (on[real] == 0).all()
    torch.testing.assert_close(got.density, case["density"], atol=2e-5 if blobs else 1e-5, rtol=0)
    torch.testing.assert_close(got.delta, case["delta"], atol=1e-4 if blobs else 1e-5, rtol=0)
    torch.testing.assert_close(got.score, case["score"], atol=2e-4 if blobs else 1e-5, rtol=0)


def test_dpc_knn_parity_chooses_the_published_centres(case):
    got = run(case)
    for ours, theirs in zip(got.centers, case["index_down"], strict=True):
        assert set(ours.tolist()) == set(theirs.tolist())


def test_dpc_knn_parity_gives_every_real_token_its_published_centre(case):
    got = run(case)
    ours = center_tokens(got.cluster, got.centers)
    theirs = center_tokens(case["idx_cluster"], case["index_down"])
    real = case["token_mask"] > 0 if "token_mask" in case else torch.ones_like(ours, dtype=torch.bool)
    if "assign_margin" in case:
        assert (case["assign_margin"] > 2e-3)[real].float().mean() > 0.9  # the comparison below is about something
    assert torch.equal(ours[real], theirs[real])


def test_dpc_knn_with_noise_is_the_parity_mode(case):
    keep, k = int(case["cluster_num"]), int(case["k"])
    flat = dpc_knn(case["x"], keep, k=k, mask=case.get("token_mask", torch.ones(case["x"].shape[:2])) > 0,
                   noise=case["noise"])  # fmt: skip
    expected = run(case).cluster + torch.arange(case["x"].size(0))[:, None] * keep
    assert torch.equal(flat.cluster.view_as(expected), expected)


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("14")])
def test_reduce_gives_the_published_merge_of_the_stored_clusters(name):
    case = CASES[name]
    stored = Assignment.from_dense(case["idx_cluster"], int(case["cluster_num"]))
    weight = case.get("token_weight", torch.ones(*case["x"].shape[:2], 1))
    merged, size = stored.reduce(case["x"].flatten(0, 1), weight.flatten())
    # Published: divided by the sum plus 1e-6; ours by the sum. Put theirs on ours to compare.
    merged = merged * (size / (size + 1e-6))[:, None]
    torch.testing.assert_close(merged.view_as(case["x_merged"]), case["x_merged"], atol=1e-5, rtol=0)
    ones = Assignment.from_dense(case["idx_cluster"], int(case["cluster_num"])).reduce(case["x"].flatten(0, 1))[1]
    assert torch.equal(ones.view_as(case["cluster_size"]).long(), case["cluster_size"])


def test_then_composes_two_stages_as_published():
    case = load("14_two_stage")
    one = Assignment.from_dense(case["idx_cluster1"], int(case["cluster_num1"]))
    two = Assignment.from_dense(case["idx_cluster2"], int(case["cluster_num2"]))
    both = one.then(two).cluster.view(2, -1) - torch.arange(2)[:, None] * int(case["cluster_num2"])
    assert torch.equal(both, case["idx_token2"])
    weight = case["token_weight1"]
    x1, _ = one.reduce(case["x"].flatten(0, 1), weight.flatten())
    torch.testing.assert_close(x1.view_as(case["x_merged1"]), case["x_merged1"], atol=1e-5, rtol=0)
    x2, _ = two.reduce(case["x_merged1"].flatten(0, 1), case["token_weight2"].flatten())
    torch.testing.assert_close(x2.view_as(case["x_merged2"]), case["x_merged2"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["12_no_noise", "01_basic", "05_blobs", "08_kN_M1"])
def test_dpc_knn_default_chooses_as_the_published_code_without_noise(name):
    case = CASES[name]
    keep = int(case["cluster_num"])
    ours = dpc_knn(case["x"], keep, k=int(case["k"]))
    images, tokens = case["x"].shape[:2]
    local = ours.centers.view(images, keep) - torch.arange(images)[:, None] * tokens
    theirs = center_tokens(case["idx_cluster"], case["index_down"])
    assert torch.equal(local, case["index_down"].sort(dim=1).values)
    assigned = local.gather(1, ours.cluster.view(images, tokens) - torch.arange(images)[:, None] * keep)
    assert torch.equal(assigned, theirs)


def test_dpc_knn_recovers_separate_blobs():
    case = CASES["05_blobs"]
    ours = dpc_knn(case["x"], 10).cluster.view(2, -1)
    for cluster, label in zip(ours, case["true_label"], strict=True):
        pairs = {(c, t) for c, t in zip(cluster.tolist(), label.tolist(), strict=True)}
        assert len(pairs) == 10


def test_dpc_knn_parity_refuses_budgets_where_the_published_code_fails():
    x = torch.randn(1, 6, 4)
    with pytest.raises(ValueError, match="at most N=6 in parity mode"):
        dpc_knn_parity(x, 7)
    with pytest.raises(ValueError, match="Expected keep >= 1"):
        dpc_knn_parity(x, 0)
