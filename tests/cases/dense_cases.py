"""Models of transformers for dense tasks, detection, pose, video and audio: tiny, with random weights."""

from functools import partial

import torch
from needs import library, timm_model

from tokengraph.testing import ModelCase

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
WIDE_CLIPS = SIZES | {"image_size": [16, 32], "num_frames": 4}  # 2 x 2 x 4 tubes
VIVIT = {name: value for name, value in WIDE_CLIPS.items() if name != "patch_size"}
EOMT = {"num_hidden_layers": 4, "num_blocks": 1, "num_queries": 4, "num_upscale_blocks": 1, "num_register_tokens": 2}
JEPA = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "mlp_ratio": 2.0,
    "crop_size": 32,
    "patch_size": 8,
    "frames_per_clip": 4,
    "pred_hidden_size": 48,
    "pred_num_attention_heads": 4,
    "pred_num_hidden_layers": 1,
    "pred_num_mask_tokens": 2,
    "num_pooler_layers": 1,
}
DPT = {
    "num_hidden_layers": 4,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 8, 8, 8],
    "fusion_hidden_size": 8,
    "is_hybrid": False,
    "use_auxiliary_head": False,
}
VISION = {  # class: its config, and options of it
    "EomtForUniversalSegmentation": ("EomtConfig", EOMT | {"mlp_ratio": 2}),
    "EomtDinov3ForUniversalSegmentation": ("EomtDinov3Config", EOMT),
    "YolosModel": (
        "YolosConfig",
        {"image_size": [32, 32], "num_detection_tokens": 5, "use_mid_position_embeddings": False},
    ),
    "YolosForObjectDetection": ("YolosConfig", {"image_size": [32, 32], "num_detection_tokens": 5}),
    "DPTForDepthEstimation": ("DPTConfig", DPT),
    "OwlViTVisionModel": ("OwlViTVisionConfig", {}),
    "CLIPSegVisionModel": ("CLIPSegVisionConfig", {}),
}
VIDEO = {
    "VivitModel": ("VivitConfig", VIVIT | {"tubelet_size": [2, 8, 8]}),
    "VideoMAEModel": ("VideoMAEConfig", WIDE_CLIPS),
    "VideoMAEForVideoClassification": ("VideoMAEConfig", WIDE_CLIPS | {"num_labels": 5}),
    "VJEPA2Model": ("VJEPA2Config", JEPA),
    "VJEPA2ForVideoClassification": ("VJEPA2Config", JEPA | {"num_labels": 5}),
}


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


IMAGES, TALL, SOUND = noise(2, 3, 32, 32), noise(2, 3, 40, 24), noise(2, 24, 32)
CLIPS, WIDE = noise(2, 4, 3, 32, 32), noise(2, 4, 3, 16, 32)


def spread(make):
    """A model with noise on every parameter: scales near zero and clones of one layer would hide mistakes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def made_of(name, config, options):
    transformers = library("transformers")
    return spread(lambda: getattr(transformers, name)(getattr(transformers, config)(**options)))


def pose(experts=1):
    transformers = library("transformers")
    sizes = SIZES | {"image_size": [40, 24], "patch_size": [8, 8], "mlp_ratio": 2, "out_indices": [3]}
    more = {"num_experts": experts, "part_features": 8} if experts > 1 else {}
    config = transformers.VitPoseConfig(backbone_config=transformers.VitPoseBackboneConfig(**sizes, **more))
    return spread(lambda: transformers.VitPoseForPoseEstimation(config))


def hiera():
    timm = library("timm")
    sizes = {"img_size": (64, 64), "embed_dim": 8, "num_heads": 1, "stages": (1, 1, 4, 1), "num_classes": 5}
    patches = {"patch_kernel": (4, 4), "patch_stride": (4, 4), "patch_padding": (0, 0), "mask_unit_size": (4, 4)}
    return spread(lambda: timm.models.Hiera(**sizes, **patches))


def qwen3():
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4, "num_classes": 5}
    return spread(lambda: timm_model("qwen3_vit_88m", **sizes, mlp_ratio=2.0, pos_embed_grid_size=4))


def dense():
    """``{(library, name): ModelCase}``."""
    found = {}
    for name, (config, options) in VISION.items():
        one_graph = "Eomt" not in name  # the plain model reads a buffer's values
        found[name] = ModelCase(partial(made_of, name, config, SIZES | options), (IMAGES,), one_graph=one_graph)
    for name, (config, options) in VIDEO.items():
        found[name] = ModelCase(partial(made_of, name, config, options), (CLIPS if "JEPA" in name else WIDE,))
    audio = SIZES | {"num_mel_bins": 32, "max_length": 24, "frequency_stride": 6, "time_stride": 8, "num_labels": 5}
    for name in ("ASTModel", "ASTForAudioClassification"):
        found[name] = ModelCase(partial(made_of, name, "ASTConfig", audio), (SOUND,))
    found["VitPoseForPoseEstimation"] = ModelCase(pose, (TALL,))
    found["VitPoseForPoseEstimation, experts"] = ModelCase(partial(pose, 2), (TALL, torch.tensor([1, 0])))
    known = {("transformers", name): case for name, case in found.items()}
    known["timm", "Hiera (hiera_base_224, ...)"] = ModelCase(hiera, (noise(2, 3, 64, 64),))
    known["timm", "qwen3_vit_88m"] = ModelCase(qwen3, (IMAGES,))
    return known
