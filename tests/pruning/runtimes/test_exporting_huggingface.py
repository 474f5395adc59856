"""Networks of Hugging Face from tiny configs, at half of their MACs, exported to ONNX and to `torch.export`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import espalier

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is downloaded
transformers: Any = pytest.importorskip("transformers")
pytest.importorskip("onnxruntime")

VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
STAGES: dict[str, Any] = {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 1, 1]}
PYRAMID: dict[str, Any] = {**STAGES, "num_attention_heads": [1, 2, 4, 4]}
RESNET: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 24], "depths": [1, 1]}

# class -> what its config says beside five labels, side of the images in pixels
NETWORKS: dict[str, tuple[dict[str, Any], int]] = {
    "ResNetForImageClassification": (RESNET, 32),
    "RegNetForImageClassification": ({**RESNET, "groups_width": 8}, 32),
    "ConvNextForImageClassification": (STAGES, 32),
    "ViTForImageClassification": ({**VIT, "intermediate_size": 48}, 32),
    "Dinov2ForImageClassification": ({**VIT, "mlp_ratio": 2}, 32),
    "BeitForImageClassification": ({**VIT, "intermediate_size": 48, "use_relative_position_bias": True}, 32),
    "SwinForImageClassification": (
        {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4, "image_size": 32},
        32,
    ),
    "SegformerForImageClassification": ({**PYRAMID, "mlp_ratios": [2, 2, 2, 2]}, 64),
    "LevitForImageClassification": (
        {
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [4, 4, 4],
            "image_size": 64,
        },
        64,
    ),
    "YolosForObjectDetection": (
        {**VIT, "intermediate_size": 48, "image_size": [32, 32], "num_detection_tokens": 5},
        32,
    ),
}
QUICK = ("ViTForImageClassification",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in NETWORKS]
)
def test_half_of_the_macs_outside_of_python(name: str, tmp_path: Path) -> None:
    settings, side = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = getattr(transformers, name)
        network = kind(kind.config_class(**{"num_labels": 5, **settings})).eval()
        with torch.no_grad():  # as after training, so that what goes in shows in what comes out
            for parameter in network.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        images = torch.randn(1, 3, side, side)
    graph = espalier.trace(network, images)
    energies = espalier.channel_energies(network, graph).double().numpy()
    widths = espalier.greedy(graph, energies, int(graph.macs(graph.sizes)) // 2)
    small = espalier.slim(network, graph, graph.keep_best(energies, widths))
    with torch.no_grad():
        assert not torch.equal(small(images)[0], small(-images)[0])
    for ending in (".onnx", ".pt2"):
        assert espalier.export(small, images, tmp_path / f"network{ending}").difference <= 1e-4


def test_a_model_of_language_by_its_named_arguments(tmp_path: Path) -> None:
    """Token ids and a mask, and what is no tensor."""
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.BertConfig(**settings, vocab_size=50, max_position_embeddings=16, num_labels=3)
    network = transformers.BertForSequenceClassification(config).eval()
    inputs = {
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        "input_ids": torch.tensor([[7, 1, 4, 9, 2, 0]]),
        "output_attentions": False,
    }
    done = espalier.export(network, inputs, tmp_path / "network.onnx")
    assert done.difference <= 1e-4 and done.batches == (1, 4)
