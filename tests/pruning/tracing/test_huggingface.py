"""Vision networks of Hugging Face Transformers, made from their configs with random weights.

None of them gets a line of code of its own: each is traced, cut to half its MACs, run and counted. The slim ones
cover what their authors write (streams under layer norm, attention of many kinds, windows, gates, convolutions with
computed weights) in a second or less each; eight are also done as published, at 224 pixels.

MACs are counted by torch's own counter: convolutions and all products of matrices, attention's included.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from espalier.pruning.graph.allocation import greedy
from espalier.pruning.importance.energy import channel_energies
from espalier.pruning.slimming.surgery import slim
from espalier.pruning.trace import trace

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is downloaded
transformers: Any = pytest.importorskip("transformers")

Settings = dict[str, Any]

TOKENS: Settings = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
"""A plain transformer on 4 x 4 patches."""

RATIO: Settings = {**TOKENS, "mlp_ratio": 2}
WIDE: Settings = {**TOKENS, "intermediate_size": 48}

STAGES: Settings = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}
"""Four stages of one block."""

PYRAMID: Settings = {**STAGES, "num_attention_heads": [1, 2, 4, 4]}
"""Stages with attention of 1 to 4 heads of 8 to 16 dimensions."""

PATCHED: Settings = {**PYRAMID, "mlp_ratios": [2, 2, 2, 2]}

DPT: Settings = {
    **WIDE,
    "num_hidden_layers": 4,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 12, 16, 20],
    "fusion_hidden_size": 16,
}

MOBILEVIT: Settings = {
    "hidden_sizes": [16, 24, 32],
    "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 48],
    "image_size": 64,
    "aspp_out_channels": 16,
}

DETR: Settings = {
    "backbone_config": {"model_type": "resnet", "embedding_size": 8, **STAGES, "out_features": ["stage4"]},
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_queries": 6,
}

RT_DETR: Settings = {
    "backbone_config": {
        "model_type": "rt_detr_resnet",
        "embedding_size": 8,
        **STAGES,
        "out_features": ["stage2", "stage3", "stage4"],
    },
    "encoder_in_channels": [24, 32, 40],
    "encoder_hidden_dim": 32,
    "encoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_in_channels": [32, 32, 32],
    "d_model": 32,
    "decoder_ffn_dim": 48,
    "decoder_attention_heads": 4,
    "decoder_layers": 2,
    "num_queries": 6,
}

# name -> (class, what its config says beside five labels, side of the images in pixels)
ZOO: dict[str, tuple[str, Settings, int]] = {
    # convolutions and batch norm
    "resnet": (
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [32, 48, 64], "depths": [1, 2, 1]},
        32,
    ),
    "mobilenet_v1": ("MobileNetV1ForImageClassification", {"depth_multiplier": 0.25}, 32),
    "mobilenet_v2": ("MobileNetV2ForImageClassification", {"depth_multiplier": 0.25}, 32),
    "mobilenet_v2, segmentation": ("MobileNetV2ForSemanticSegmentation", {"depth_multiplier": 0.25}, 64),
    "regnet": (
        "RegNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [24, 48], "depths": [1, 2], "groups_width": 8},
        32,
    ),
    "regnet, x": (
        "RegNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [24, 48], "depths": [1, 2], "groups_width": 8, "layer_type": "x"},
        32,
    ),
    "efficientnet": (
        "EfficientNetForImageClassification",
        {"width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
        32,
    ),
    "textnet": (
        "TextNetForImageClassification",
        {
            "stem_out_channels": 8,
            "hidden_sizes": [8, 8, 16, 24, 32],
            "conv_layer_kernel_sizes": [[[3, 3]], [[3, 3], [1, 3]], [[3, 3], [3, 1]], [[3, 3]]],
            "conv_layer_strides": [[1], [2, 1], [2, 1], [2]],
        },
        64,
    ),
    "hgnet_v2": (
        "HGNetV2ForImageClassification",
        {
            "stem_channels": [3, 8, 12],
            "stage_in_channels": [12, 16, 24, 32],
            "stage_mid_channels": [8, 8, 12, 16],
            "stage_out_channels": [16, 24, 32, 40],
            "stage_num_blocks": [1, 1, 2, 1],
            "stage_numb_of_layers": [2, 2, 2, 2],
            "hidden_sizes": [16, 24, 32, 40],
        },
        64,
    ),
    "pp_lcnet": ("PPLCNetForImageClassification", {"scale": 0.5, "class_expand": 64}, 32),
    "bit": (
        "BitForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 2], "num_groups": 4},
        32,
    ),
    # convolutions and layer norm
    "convnext": ("ConvNextForImageClassification", STAGES, 32),
    "convnextv2": ("ConvNextV2ForImageClassification", STAGES, 32),
    "dinov3_convnext": ("DINOv3ConvNextBackbone", STAGES, 32),
    "poolformer": ("PoolFormerForImageClassification", STAGES, 64),
    "focalnet": (
        "FocalNetForImageClassification",
        {
            "embed_dim": 16,
            "hidden_sizes": [16, 32],
            "depths": [1, 2],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
            "image_size": 32,
        },
        32,
    ),
    "upernet": (
        "UperNetForSemanticSegmentation",
        {
            "backbone_config": {
                "model_type": "convnext",
                **STAGES,
                "out_features": ["stage1", "stage2", "stage3", "stage4"],
            },
            "hidden_size": 16,
            "auxiliary_channels": 12,
        },
        64,
    ),
    # transformers
    "vit": ("ViTForImageClassification", WIDE, 32),
    "vit_msn": ("ViTMSNForImageClassification", WIDE, 32),
    "deit": ("DeiTForImageClassification", WIDE, 32),
    "deit, teacher": ("DeiTForImageClassificationWithTeacher", WIDE, 32),
    "beit": ("BeitForImageClassification", {**WIDE, "use_relative_position_bias": True}, 32),
    "data2vec_vision": ("Data2VecVisionForImageClassification", WIDE, 32),
    "dinov2": ("Dinov2ForImageClassification", RATIO, 32),
    "dinov2, gated": ("Dinov2ForImageClassification", {**RATIO, "use_swiglu_ffn": True}, 32),
    "dinov2_with_registers": ("Dinov2WithRegistersForImageClassification", RATIO, 32),
    "dinov3_vit": ("DINOv3ViTBackbone", WIDE, 32),
    "ijepa": ("IJepaForImageClassification", WIDE, 32),
    "pixio": ("PixioBackbone", RATIO, 32),
    "clip": ("CLIPForImageClassification", {"vision_config": WIDE}, 32),
    "siglip": ("SiglipForImageClassification", {"vision_config": WIDE}, 32),
    "aimv2": ("Aimv2VisionModel", WIDE, 32),
    "vitdet": (
        "VitDetBackbone",
        {**RATIO, "pretrain_image_size": 32, "window_size": 2, "window_block_indices": [0]},
        32,
    ),
    "vitpose": ("VitPoseBackbone", {**RATIO, "image_size": [32, 32], "patch_size": [8, 8]}, 32),
    "dpt, depth": ("DPTForDepthEstimation", DPT, 32),
    "dpt, segmentation": ("DPTForSemanticSegmentation", DPT, 32),
    "depth_anything": (
        "DepthAnythingForDepthEstimation",
        {
            "backbone_config": {
                "model_type": "dinov2",
                **RATIO,
                "num_hidden_layers": 4,
                "out_indices": [1, 2, 3, 4],
                "reshape_hidden_states": False,
            },
            "patch_size": 8,
            "reassemble_hidden_size": 32,
            "neck_hidden_sizes": [8, 12, 16, 20],
            "fusion_hidden_size": 16,
            "head_hidden_size": 8,
        },
        32,
    ),
    "yolos": ("YolosForObjectDetection", {**WIDE, "image_size": [32, 32], "num_detection_tokens": 5}, 32),
    # transformers in stages and windows
    "swin": (
        "SwinForImageClassification",
        {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32},
        32,
    ),
    "swinv2": (
        "Swinv2ForImageClassification",
        {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "image_size": 32},
        32,
    ),
    "swin2sr": (
        "Swin2SRForImageSuperResolution",
        {"embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": 4, "image_size": 16},
        16,
    ),
    "hiera": (
        "HieraForImageClassification",
        {
            "embed_dim": 16,
            "depths": [1, 1, 1, 1],
            "num_heads": [1, 2, 2, 4],
            "mlp_ratio": 2.0,
            "image_size": [64, 64],
        },
        64,
    ),
    "pvt": ("PvtForImageClassification", {**PATCHED, "image_size": 64}, 64),
    "pvt_v2": ("PvtV2ForImageClassification", {**PYRAMID, "mlp_ratios": [8, 8, 4, 4], "image_size": 64}, 64),
    "segformer": ("SegformerForImageClassification", PATCHED, 64),
    "segformer, segmentation": ("SegformerForSemanticSegmentation", {**PATCHED, "decoder_hidden_size": 24}, 64),
    "glpn": ("GLPNForDepthEstimation", {**PYRAMID, "decoder_hidden_size": 16}, 64),
    # convolutions and attention
    "mobilevit": ("MobileViTForImageClassification", MOBILEVIT, 64),
    "mobilevit, segmentation": ("MobileViTForSemanticSegmentation", MOBILEVIT, 64),
    "mobilevitv2": (
        "MobileViTV2ForImageClassification",
        {
            "width_multiplier": 0.25,
            "base_attn_unit_dims": [64, 64, 96],
            "n_attn_blocks": [1, 1, 1],
            "image_size": 64,
        },
        64,
    ),
    "levit": (
        "LevitForImageClassification",
        {
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [4, 4, 4],
            "image_size": 64,
        },
        64,
    ),
    "cvt": (
        "CvtForImageClassification",
        {"embed_dim": [16, 24, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3], "mlp_ratio": [2.0, 2.0, 2.0]},
        64,
    ),
    "swiftformer": (
        "SwiftFormerForImageClassification",
        {"embed_dims": [16, 24, 32, 40], "depths": [1, 1, 1, 1], "mlp_ratio": 2},
        64,
    ),
    "detr": ("DetrForObjectDetection", DETR, 64),
    "conditional_detr": ("ConditionalDetrForObjectDetection", DETR, 64),
    "rt_detr": ("RTDetrForObjectDetection", RT_DETR, 64),
}

VARIANTS = (
    *("mobilenet_v2, segmentation", "regnet, x", "dinov3_convnext", "vit_msn", "deit", "deit, teacher", "ijepa"),
    *("data2vec_vision", "dinov2, gated", "pixio", "vitpose", "dpt, segmentation", "swin2sr", "segformer", "glpn"),
    *("mobilevit, segmentation", "detr", "conditional_detr", "rt_detr", "upernet", "depth_anything"),
)
"""What others have too, or takes more than a second: among the slow tests."""

AS_PUBLISHED = (
    "resnet",
    "mobilenet_v1",
    "mobilenet_v2",
    "regnet",
    "convnext",
    "efficientnet",
    "vit",
    "mobilevit",
)
"""Also with their configs' defaults: ResNet-50, RegNetY-4GF, ConvNeXt-T, EfficientNet-B7, ViT-B/16, ..."""


def test_every_variant_is_in_the_zoo() -> None:
    assert {*VARIANTS, *AS_PUBLISHED} <= set(ZOO)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def build(cls: str, settings: Settings) -> nn.Module:
    network = getattr(transformers, cls)
    model: nn.Module = network(network.config_class(**{"num_labels": 5, **settings})).eval()
    randomise(model)
    return model


def randomise(model: nn.Module) -> None:
    """After training, no bias is zero, no scale one or tiny, no statistic that of a unit normal."""
    with torch.no_grad():
        for parameter in model.parameters():
            matrix = parameter.dim() > 1 and parameter.shape[0] > 1
            fan_in = parameter.numel() // parameter.shape[0] if matrix else 25
            parameter.add_(torch.randn_like(parameter), alpha=fan_in**-0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.3)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)


def tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, Tensor)]


def run(model: nn.Module, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return tensors(model(images))


def counted_macs(model: nn.Module, images: Tensor) -> int:
    """On the CPU the counter knows fused attention by its parts only."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(model, images)
    return int(counter.get_total_flops()) // 2


def check_halved(model: nn.Module, images: Tensor) -> None:
    """Half the MACs go by energy, and what is left is what was asked for; where all is kept, nothing changes."""
    graph = trace(model, images)
    dense = counted_macs(model, images)
    assert int(graph.macs(graph.sizes)) == dense

    energies = channel_energies(model, graph).double().numpy()
    widths = greedy(graph, energies, budget=dense // 2)
    slimmed = slim(model, graph, graph.keep_best(energies, widths))
    assert int(graph.macs(widths)) == counted_macs(slimmed, images) <= dense // 2
    assert int(graph.params(widths)) == sum(parameter.numel() for parameter in slimmed.parameters())

    more = torch.randn(2, *images.shape[1:])
    outputs = run(slimmed, more)
    assert [output.shape for output in outputs] == [output.shape for output in run(model, more)]
    assert all(output.isfinite().all() for output in outputs)

    whole = slim(model, graph, torch.ones(graph.n_channels, dtype=torch.bool))
    torch.testing.assert_close(run(whole, images), run(model, images))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in VARIANTS else []) for name in ZOO]
)
def test_half_the_macs_go(name: str) -> None:
    cls, settings, side = ZOO[name]
    check_halved(build(cls, settings), torch.randn(1, 3, side, side))


@pytest.mark.slow
@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_half_the_macs_go_as_published(name: str) -> None:
    check_halved(build(ZOO[name][0], {}), torch.randn(1, 3, 224, 224))


def test_as_many_keypoints_as_are_found() -> None:
    """SuperPoint returns as many as it finds: sizes that depend on data."""
    settings: Settings = {
        "encoder_hidden_sizes": [8, 8, 16, 16],
        "decoder_hidden_size": 16,
        "keypoint_decoder_dim": 65,
        "descriptor_decoder_dim": 16,
    }
    model, images = build("SuperPointForKeypointDetection", settings), torch.randn(1, 3, 32, 32)
    graph = trace(model, images)
    smaller = slim(
        model, graph, graph.keep_best(channel_energies(model, graph).double().numpy(), (graph.sizes + 1) // 2)
    )
    assert smaller(images).keypoints.shape[-1] == 2
    check_halved(model.get_submodule("encoder"), images[:, :1])
