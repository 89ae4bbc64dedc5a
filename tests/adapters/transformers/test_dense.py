"""What is special about dense, detection, pose, video and audio models, besides the laws of every model."""

import pytest
import torch
from dense_cases import CLIPS, EOMT, IMAGES, SIZES, VIVIT, WIDE, WIDE_CLIPS, dense, made_of, noise
from fours import Fours, fours_made_equal
from needs import library
from torch.testing import assert_close

import tokengraph as tg

transformers = library("transformers")

YOLOS = SIZES | {"image_size": [32, 32], "num_detection_tokens": 5}


def yolos(**options):
    return made_of("YolosForObjectDetection", "YolosConfig", YOLOS | options)


@pytest.mark.parametrize("size", [(40, 32), (24, 48), (32, 32)])
@pytest.mark.parametrize("start", [1, 2])
def test_yolos_takes_images_of_any_shape_and_stays_bit_identical(size, start):
    model, x = yolos(), noise(2, 3, *size)
    with torch.no_grad():
        plain = model(x, output_hidden_states=True)
        with tg.attach(model, "tome", {start: 1.0}):
            same = model(x, output_hidden_states=True)
        with tg.attach(model, "ailurus", {start: 0.5}, lift=True) as handle:
            lifted = model(x, output_hidden_states=True)
            patches = (size[0] // 8) * (size[1] // 8)
            assert handle.trace.counts == [patches] * start + [patches // 2] * (4 - start)
    assert torch.equal(same.logits, plain.logits) and torch.equal(same.pred_boxes, plain.pred_boxes)
    assert all(map(torch.equal, same.hidden_states, plain.hidden_states))
    assert [h.shape for h in lifted.hidden_states] == [h.shape for h in plain.hidden_states]
    assert lifted.last_hidden_state.shape == plain.last_hidden_state.shape


def test_yolos_reads_detection_tokens_from_the_end_of_coarse_outputs_too():
    model = yolos()
    with torch.no_grad(), tg.attach(model, tg.TopK(score="norm"), {1: 0.5}):
        output = model(IMAGES, output_hidden_states=True)
        tokens = output.last_hidden_state[:, -5:]
        assert output.last_hidden_state.shape == (2, 1 + 8 + 5, 32)
        assert torch.equal(output.logits, model.class_labels_classifier(tokens))
        normed = model.vit.layernorm(output.hidden_states[-1])  # in the same order
        assert_close(normed, output.last_hidden_state)


def test_positions_between_the_layers_of_yolos_are_averaged_over_clusters():
    """If tokens and the positions between layers are equal in groups of four, merging them changes nothing."""
    model = yolos()
    with torch.no_grad():
        table = model.vit.encoder.interpolation.mid_position_embeddings
        table[:, :, 1:17] = table[:, :, 1:17].unflatten(2, (4, 4))[:, :, :, :1].expand(-1, -1, -1, 4, -1).flatten(2, 3)
        hook = model.vit.embeddings.register_forward_hook(_fours)
        plain = model(IMAGES).logits
        with tg.attach(model, Fours(), {1: 4}) as handle:
            assert_close(model(IMAGES).logits, plain, rtol=1e-3, atol=1e-3)
            assert handle.trace.counts == [16, 4, 4, 4]
        hook.remove()


def _fours(module, args, output):
    patches = output[:, 1:17].unflatten(1, (4, 4))[:, :, :1].expand(-1, -1, 4, -1).flatten(1, 2)
    return torch.cat([output[:, :1], patches, output[:, 17:]], dim=1)


@pytest.mark.parametrize("name", ["Eomt", "EomtDinov3"])
@pytest.mark.parametrize("select", ["ailurus", tg.Expedite(clusters=(2, 3)), "token-migration", "tome"])
def test_eomt_predicts_masks_from_every_patch(name, select):
    options = EOMT | ({"mlp_ratio": 2} if name == "Eomt" else {})
    model = made_of(f"{name}ForUniversalSegmentation", f"{name}Config", SIZES | options)
    schedule = {2: "cluster"} if isinstance(select, tg.Expedite) else None if "migr" in str(select) else {2: 0.5}
    with torch.no_grad():
        plain = model(IMAGES, output_hidden_states=True)
        with tg.attach(model, select, schedule) as handle:
            coarse = model(IMAGES, output_hidden_states=True)
            assert min(handle.trace.counts) < 16 and len(handle.trace.counts) == 4
    assert coarse.masks_queries_logits.shape == plain.masks_queries_logits.shape
    assert [h.shape for h in coarse.hidden_states] == [h.shape for h in plain.hidden_states]
    assert not torch.equal(coarse.class_queries_logits, plain.class_queries_logits)


def test_eomt_trains_with_masks_in_its_last_layers():
    model = dense()["transformers", "EomtForUniversalSegmentation"].make().train()
    with tg.attach(model, "tome", {2: 0.5}):
        labels = [torch.ones(1, 32, 32)] * 2, [torch.zeros(1, dtype=torch.long)] * 2
        try:
            loss = model(IMAGES, mask_labels=labels[0], class_labels=labels[1]).loss
        except ImportError as error:  # its matcher needs scipy
            pytest.skip(str(error))
        loss.backward()
    assert all(p.grad.isfinite().all() for p in model.layers.parameters() if p.grad is not None)
    assert model.layers[0].attention.q_proj.weight.grad.abs().sum() > 0


def test_dpt_on_convolutional_features_is_served():
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 8], "depths": [1, 1, 1], "num_groups": 2}
    stages = {"out_features": ["stage1", "stage2", "stage3"], "layer_type": "bottleneck", "global_padding": "same"}
    config = transformers.DPTConfig(
        **SIZES | {"num_hidden_layers": 4, "image_size": 64, "patch_size": 16},
        is_hybrid=True,
        backbone_config=transformers.BitConfig(**sizes, **stages, embedding_dynamic_padding=True),
        backbone_featmap_shape=[1, 8, 4, 4],
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8,
        neck_ignore_stages=[0, 1],
    )
    model, x = transformers.DPTForDepthEstimation(config).eval(), noise(2, 3, 64, 64)
    with torch.no_grad():
        plain = model(x).predicted_depth
        with tg.attach(model, "tome", 0):
            assert torch.equal(model(x).predicted_depth, plain)
        for place in (model, model.dpt):
            with tg.attach(place, "ailurus", {1: 0.5}) as handle:
                assert model(x).predicted_depth.shape == plain.shape
                assert handle.trace.counts == [16, 8, 8, 8, 8] and handle.trace.grid == (4, 4)


def test_experts_of_vitpose_belong_to_images():
    case = dense()["transformers", "VitPoseForPoseEstimation, experts"]
    model, (images, experts) = case.make(), case.inputs
    with torch.no_grad(), tg.attach(model, "ailurus", {1: 0.5}) as handle:
        ours = model(images, dataset_index=experts).heatmaps
        others = model(images, dataset_index=1 - experts).heatmaps
        assert handle.trace.grid == (5, 3)
        with pytest.raises(ValueError, match="dataset_index"):
            model(images)
    assert not torch.allclose(ours, others)
    assert not any("expert" in name for m in model.modules() for name in m.__dict__ if name.startswith("_tokengraph"))


@pytest.mark.parametrize("select", ["ailurus", tg.Expedite(clusters=(1, 2, 4)), "grid-pool", "tome"])
@pytest.mark.parametrize("name", ["VivitModel", "VideoMAEModel", "VJEPA2Model"])
def test_strategies_see_the_grid_of_tubes(name, select):
    case = dense()["transformers", name]
    model, videos = case.make(), case.inputs[0]
    schedule = {1: "cluster"} if isinstance(select, tg.Expedite) else {1: 0.5}
    with torch.no_grad(), tg.attach(model, select, schedule) as handle:
        model(videos)
        frames, height, width = handle.trace.grid
        assert (frames, height * 8, width * 8) == (2, *videos.shape[-2:])
        assert handle.trace.counts[1:] == [8 if isinstance(select, tg.Expedite) else frames * height * width // 2] * 3
        assert handle.trace.output is not None
        assert handle.trace.as_map().shape == (2, handle.trace.output.size(2), frames, height, width)


def test_a_token_graph_of_a_video_has_positions_in_space_and_time():
    model = dense()["transformers", "VivitModel"].make()
    graph = tg.TokenGraph.from_model(model, WIDE, layer=1)
    assert graph.num_nodes == 2 * 16 and graph.pos.shape == (32, 3)
    assert graph.pos[15].tolist() == [1.5, 1.5, 3.5]


def test_merging_equal_tubes_changes_nothing_of_what_heads_of_videos_give():
    inputs = {
        "VideoMAEForVideoClassification": {"use_mean_pooling": False},
        "VJEPA2ForVideoClassification": {},
    }
    for name, options in inputs.items():
        case = dense()["transformers", name]
        model = made_of(name, "VideoMAEConfig", WIDE_CLIPS | options) if options else case.make()
        videos = case.inputs[0]
        with torch.no_grad(), fours_made_equal(model):
            plain = model(videos).logits
            with tg.attach(model, Fours(), {1: 0.25}) as handle:
                got = model(videos).logits
                assert handle.trace.counts[-1] == handle.trace.counts[0] // 4
        if "JEPA" not in name:  # where equal tubes differ by their rotation
            assert_close(got, plain, rtol=1e-3, atol=1e-3)
        assert got.shape == plain.shape


def test_videomae_pretrains_on_visible_tubes():
    config = WIDE_CLIPS | {
        "decoder_num_attention_heads": 2,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_intermediate_size": 32,
    }
    model = made_of("VideoMAEForPreTraining", "VideoMAEConfig", config)
    masked = torch.tensor([[True, False] * 8] * 2)
    with torch.no_grad():
        plain = model(WIDE, bool_masked_pos=masked)
        with tg.attach(model, "tome", 0):
            assert torch.equal(model(WIDE, bool_masked_pos=masked).logits, plain.logits)
        with tg.attach(model, "tome", {1: 0.5}) as handle:
            assert model(WIDE, bool_masked_pos=masked).logits.shape == plain.logits.shape
            assert handle.trace.counts == [8, 4, 4, 4]
            with pytest.raises(ValueError, match="Expected"):
                handle.trace.as_map()


def test_positions_of_v_jepa_2_are_those_of_kept_tubes():
    """Dropping tubes equals running the encoder's later layers with the positions that the tubes had."""
    model = dense()["transformers", "VJEPA2Model"].make()
    encoder = model.encoder
    with torch.no_grad(), tg.attach(encoder, tg.TopK(score="norm"), {1: 8}) as handle:
        coarse = encoder(CLIPS).last_hidden_state
        ancestor = handle.trace.lineage(1).ancestor
        assert ancestor is not None
    with torch.no_grad():
        x = encoder.layer[0](encoder.embeddings(CLIPS))[0]
        x = x.gather(1, ancestor[..., None].expand(-1, -1, x.size(2)))
        for layer in encoder.layer[1:]:
            x = layer(x, ancestor)[0]
    assert_close(coarse, encoder.layernorm(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("size", [(32, 32), (40, 24)])
@pytest.mark.parametrize("name", ["OwlViTVisionModel", "CLIPSegVisionModel"])
def test_positions_are_interpolated_for_images_of_other_shapes(name, size):
    model, x = dense()["transformers", name].make(), noise(2, 3, *size)
    with torch.no_grad(), tg.attach(model, "ailurus", {1: 0.5}) as handle:
        model(x, interpolate_pos_encoding=True)
        assert handle.trace.grid == (size[0] // 8, size[1] // 8)


def test_models_of_divided_attention_are_refused_by_name():
    options = VIVIT | {"patch_size": 8, "image_size": 32}
    model = made_of("TimesformerModel", "TimesformerConfig", options)
    with pytest.raises(ValueError, match="TimesformerModel.*time and space in turn.*VideoMAE"):
        tg.attach(model, "tome", 2)
