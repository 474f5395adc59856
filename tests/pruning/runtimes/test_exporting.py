"""Exported files give what the network gives, and a file that does not is not written."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import espalier
from espalier.errors import ArtefactError, ConfigError, ExportError, MissingPackage
from espalier.pruning.graph.inputs import Inputs
from espalier.pruning.networks import NETWORKS, build
from espalier.pruning.networks.weights import digest, load_weights, tensors_of
from espalier.pruning.runtimes import FORMATS, formats, measure, read_metadata
from espalier.pruning.runtimes.onnx_int8 import pieces
from espalier.pruning.slimming.quantised_layers import quantise, quantised_layers
from espalier.pruning.slimming.recalibration import recalibrate_bn

onnx: Any = pytest.importorskip("onnx")
onnxruntime: Any = pytest.importorskip("onnxruntime")


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Tiny(nn.Module):
    """A convolution, a norm and a linear layer; the middle can be anything."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.middle = middle or nn.ReLU()
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.middle(self.norm(self.conv(x))).mean((2, 3)))
        return y


IMAGES = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def halved(network: nn.Module, images: Tensor) -> nn.Module:
    """With half of its MACs."""
    graph = espalier.trace(network, images)
    energies = espalier.channel_energies(network, graph).double().numpy()
    widths = espalier.greedy(graph, energies, int(graph.macs(graph.sizes)) // 2)
    small: nn.Module = espalier.slim(network, graph, graph.keep_best(energies, widths))
    return small


def outputs(path: Path, *inputs: Tensor) -> list[np.ndarray[Any, Any]]:
    """Of an ONNX file, as its users run it."""
    session = onnxruntime.InferenceSession(path)
    names = [each.name for each in session.get_inputs()]
    feed = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
    return list(session.run(None, feed))


# --------------------------------------------------------------------------------------------- networks

QUICK = ("cifarnet", "alexnet_bn")
"""In the unit tests; the others take half a minute each on a slow machine."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in NETWORKS]
)
def test_every_network_in_the_box_at_half_of_its_macs(name: str, tmp_path: Path) -> None:
    side = 64 if "alexnet" in name else 32
    images = torch.randn(1, 3, side, side)
    small = halved(build(name).eval(), images)
    for ending in (".onnx", ".pt2"):
        done = espalier.export(small, images, tmp_path / f"network{ending}")
        assert done.difference <= 1e-4 and done.batches == (1, 4)
    more = torch.randn(3, 3, side, side)
    with torch.no_grad():
        wanted = small(more).numpy()
    got = outputs(tmp_path / "network.onnx", more)[0]
    assert np.abs(got - wanted).max() <= 1e-4 * np.abs(wanted).max()


# --------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("batch", ["dynamic", 2])
def test_a_file_is_run_and_says_what_it_is_made_of(ending: str, batch: Any, tmp_path: Path) -> None:
    for package in FORMATS[ending].packages:
        pytest.importorskip(package)
    network = Tiny().train()
    file = tmp_path / "made" / f"network{ending}"
    done = espalier.export(network, IMAGES, file, batch=batch, metadata={"study": "mine", "budget": {"macs": 7}})
    assert network.training and done.path == file and 0 <= done.difference < 1e-5
    assert done.batches == ((4, 1) if batch == "dynamic" else (2,))
    assert done.size == sum(each.stat().st_size for each in file.parent.iterdir())
    assert read_metadata(file) == {
        "espalier": espalier.__version__,
        "weights": digest(tensors_of(network)),
        "widths": {"conv": 5, "linear": 3},
        "study": "mine",
        "budget": {"macs": 7},
    }
    examples = ("any number of examples", "with 4 and 1 examples")
    for words in examples if batch == "dynamic" else ("2 examples a pass", "with 2 examples"):
        assert words in done.words()
    beside = {".bin"} if ending == ".xml" else set()
    assert {each.suffix for each in file.parent.iterdir()} == {ending} | beside


def test_weights_alone_fit_the_network_again(tmp_path: Path) -> None:
    network, other = Tiny().eval(), Tiny().eval()
    espalier.export(network, IMAGES, tmp_path / "weights.safetensors")
    load_weights(other, tmp_path / "weights.safetensors")
    assert torch.equal(network(IMAGES), other(IMAGES))


def test_a_program_is_called_like_the_network(tmp_path: Path) -> None:
    network = Tiny().eval()
    espalier.export(network, IMAGES, tmp_path / "network.pt2")
    program = torch.export.load(tmp_path / "network.pt2").module()
    for count in (1, 3, 7):
        assert torch.allclose(program(IMAGES[:1].repeat(count, 1, 1, 1)), network(IMAGES[:1]), atol=1e-6)


def test_a_file_of_onnx_holds_nothing_of_this_machine(tmp_path: Path) -> None:
    espalier.export(Tiny(), IMAGES, tmp_path / "network.onnx", opset=19)
    content = (tmp_path / "network.onnx").read_bytes()
    assert str(Path(__file__).parent).encode() not in content and b"site-packages" not in content
    model = onnx.load(tmp_path / "network.onnx")
    assert [each.version for each in model.opset_import if not each.domain] == [19]
    (given,) = model.graph.input
    assert given.name == "x" and given.type.tensor_type.shape.dim[0].dim_param == "batch"
    onnx.checker.check_model(model, full_check=True)


class Several(nn.Module):
    """Named, optional and other arguments; outputs in a dict and a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(3, 5)

    def forward(self, x: Tensor, y: Tensor | None = None, *, scale: float = 1.0, **rest: Tensor) -> dict[str, Any]:
        z = self.first(x) if y is None else self.first(x) + self.second(y) * scale
        return {"sum": z + rest.get("shift", 0), "rest": (2 * z, {"deep": z - 1})}


@pytest.mark.parametrize("ending", [".onnx", ".pt2", ".xml"])
@pytest.mark.parametrize(
    ("inputs", "names"),
    [
        ((torch.rand(2, 4), torch.rand(2, 3)), ["x", "y"]),
        ({"y": torch.rand(2, 3), "x": torch.rand(2, 4), "scale": 3.0}, ["x", "y"]),
        ({"shift": torch.rand(2, 5), "x": torch.rand(2, 4)}, ["x", "shift"]),
    ],
)
def test_tuples_and_dicts(ending: str, inputs: Inputs, names: list[str], tmp_path: Path) -> None:
    for package in FORMATS[ending].packages:
        pytest.importorskip(package)
    done = espalier.export(Several(), inputs, tmp_path / f"network{ending}")
    assert done.difference < 1e-5 and done.batches == (2, 1)
    if ending == ".onnx":
        graph = onnx.load(tmp_path / "network.onnx").graph
        assert [each.name for each in graph.input] == names
        assert [each.name for each in graph.output] == ["sum", "rest_0", "rest_1_deep"]


def test_inputs_without_a_batch_stay_as_they_are(tmp_path: Path) -> None:
    class Shifted(Tiny):
        def forward(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
            return super().forward(x) + (0 if shift is None else shift)

    inputs = (IMAGES, torch.rand(3))
    assert espalier.export(Shifted(), inputs, tmp_path / "network.onnx").difference < 1e-5


# --------------------------------------------------------------------------------------------- 8 bits


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_8_bits_on_digits(ending: str, digits: tuple[nn.Module, Tensor, Tensor], tmp_path: Path) -> None:
    """Less than half a percent of test images are lost, and the file is smaller."""
    for package in FORMATS[ending].packages:
        pytest.importorskip(package)
    network, images, labels = digits
    calibration = list(images[:256].split(64))
    plain = espalier.export(network, images[:1], tmp_path / f"plain{ending}")
    done = espalier.export(network, images[:1], tmp_path / f"int8{ending}", int8=calibration)
    assert done.agreement is not None and done.agreement.top1 is not None
    assert done.agreement.top1 >= 0.98 and 0 < done.agreement.error < 0.1 and done.agreement.examples == 64
    assert "in 8 bits: top-1 agrees on " in done.words() and "relative error" in done.words()
    weights = [
        (tmp_path / f"{name}.bin" if ending == ".xml" else tmp_path / f"{name}{ending}")
        for name in ("plain", "int8")
    ]
    assert weights[1].stat().st_size < weights[0].stat().st_size < 2 * plain.size
    with torch.no_grad():
        dense = float((network(images[256:]).argmax(1) == labels[256:]).float().mean())
    run = FORMATS[ending].load(done.path, network)
    small = float((run(images[256:])[0].argmax(1) == labels[256:]).float().mean())
    assert dense > 0.9 and small >= dense - 0.005


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_of_networks_with_layer_norms_products_alone_are_in_8_bits(ending: str, tmp_path: Path) -> None:
    """ONNX Runtime refuses the file else, or it is a quarter off."""
    for package in FORMATS[ending].packages:
        pytest.importorskip(package)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build("vit_tiny", in_channels=1, image_size=8, patch_size=2, depth=1).eval()
        images = torch.randn(64, 1, 8, 8)
    done = espalier.export(network, images[:1], tmp_path / f"network{ending}", int8=list(images.split(16)))
    assert done.agreement is not None and 0 < done.agreement.error < 0.05
    plain = espalier.export(network, images[:1], tmp_path / f"plain{ending}")
    assert done.size < 0.5 * plain.size


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A small network, trained on half of the digits; the other half, and its labels."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = torch.tensor(loaded.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(loaded.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(256, 10)),
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
        for _ in range(8):
            for rows in torch.randperm(900).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
                optimizer.step()
    return network.eval(), images[900:], labels[900:]


def test_weights_have_a_scale_for_each_channel(tmp_path: Path) -> None:
    network = Tiny()
    espalier.export(network, IMAGES, tmp_path / "network.onnx", int8=[IMAGES])
    graph = onnx.load(tmp_path / "network.onnx").graph
    held = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    kernels = {name: array for name, array in held.items() if array.dtype == np.int8 and array.ndim > 1}
    assert {array.shape for array in kernels.values()} in ({(3, 5), (5, 2, 3, 3)}, {(5, 3), (5, 2, 3, 3)})
    scales = {
        node.input[0]: held[node.input[1]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in kernels
    }
    assert sorted(scale.size for scale in scales.values()) == [3, 5]
    assert {node.op_type for node in graph.node} >= {"QuantizeLinear", "DequantizeLinear"}


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_layers_in_8_bits_are_so_in_the_file_and_no_others(ending: str, tmp_path: Path) -> None:
    if ending == ".xml":
        pytest.importorskip("openvino")
    network = build("resnet20", in_channels=2, num_classes=5).train()
    images = torch.randn(64, 2, 6, 6)
    with torch.no_grad():
        network(images)
    layers = {"conv1": 8, "layer2.0.conv2": 8, "linear": 8}
    quantise(network.eval(), layers)
    recalibrate_bn(network, [images])
    with pytest.raises(ConfigError, match="3 layers of CifarResNet compute in fewer bits: give batches of inputs"):
        espalier.export(network, images[:1], tmp_path / f"network{ending}")
    done = espalier.export(network, images[:1], tmp_path / f"network{ending}", int8=[images])
    assert done.agreement is not None and done.agreement.error < 0.1
    assert read_metadata(done.path)["bits"] == layers and len(quantised_layers(network)) == 3
    if ending == ".onnx":
        held = onnx.load(done.path).graph
        kernels = [
            each for each in held.initializer if each.data_type == onnx.TensorProto.INT8 and len(each.dims) > 1
        ]
        assert len(kernels) == 3
        scales = {node.output[0]: node.input for node in held.node if node.op_type == "QuantizeLinear"}
        arrays = {each.name: onnx.numpy_helper.to_array(each) for each in held.initializer}
        first = next(inputs for inputs in scales.values() if inputs[0] == held.input[0].name)
        low, high = quantised_layers(network)["conv1"].input_range.tolist()
        assert float(arrays[first[1]]) == pytest.approx((high - low) / 255, rel=1e-3)
    with pytest.raises(ConfigError, match=r"compute in fewer bits: write \.onnx or \.xml"):
        espalier.export(network, images[:1], tmp_path / "network.pt2")
    quantise(network, {"conv1": 4})
    with pytest.raises(
        ExportError, match="runtimes compute in 8 bits or in float32, and CifarResNet has conv1 in 4 bits"
    ):
        espalier.export(network, images[:1], tmp_path / f"network{ending}", int8=[images])


class Joined(nn.Module):
    """Two layers side by side."""

    def __init__(self, upper: nn.Module, lower: nn.Module) -> None:
        super().__init__()
        self.upper, self.lower = upper, lower

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.upper(x), self.lower(x)], 1)


class SelfAttention(nn.Module):
    """As in language models: RMS norms, and a matrix product with what softmax gives."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.norm, self.causal = nn.RMSNorm(8), causal
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        query, key, value = (layer(y)[:, None] for layer in (self.query, self.key, self.value))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        found: Tensor = x + self.out(mixed[:, 0])
        return found


IN_8_BITS = {
    "concatenation": (
        Joined(nn.Sequential(nn.Conv2d(2, 8, 1), nn.ReLU()), nn.Conv2d(2, 8, 1)),
        nn.Conv2d(16, 3, 1),
    ),
    "concatenation of SiLU": (
        Joined(nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.SiLU()), nn.Conv2d(2, 8, 1)),
        nn.Conv2d(16, 3, 1),
    ),
    "transposed convolution in groups": (
        nn.Conv2d(2, 8, 3),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 2, 2, groups=2),
        nn.ReLU(),
        nn.Conv2d(6, 3, 1),
    ),
    "norm first": (nn.BatchNorm2d(2), nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 1)),
    "attention": (SelfAttention(False), nn.RMSNorm(8), nn.Linear(8, 3)),
    "causal attention": (SelfAttention(True), nn.RMSNorm(8), nn.Linear(8, 3)),
}


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
@pytest.mark.parametrize("name", IN_8_BITS)
def test_8_bits_lose_little_whatever_the_network_is_made_of(name: str, ending: str, tmp_path: Path) -> None:
    if ending == ".xml":
        pytest.importorskip("openvino")
    network = nn.Sequential(*IN_8_BITS[name]).eval()
    inputs = torch.randn(64, 5, 8) if "attention" in name else torch.randn(64, 2, 8, 8)
    done = espalier.export(network, inputs[:1], tmp_path / f"network{ending}", int8=[inputs])
    assert done.agreement is not None and done.agreement.error < 0.08


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_layers_in_8_bits_are_timed_so(runtime: str) -> None:
    pytest.importorskip(runtime)
    network = Tiny().eval()
    plain = measure({"plain": network}, IMAGES[:1], runtime, repeats=2)
    quantise(network, {"conv": 8, "linear": 8})
    found = measure({"own": network}, IMAGES[:1], runtime, repeats=2)
    assert found["own"].milliseconds > 0 and plain["plain"].runtime == found["own"].runtime == runtime
    assert len(quantised_layers(network)) == 2


def test_examples_are_kept_for_the_check_where_there_are_enough() -> None:
    many = torch.randn(100, 2, 6, 6)
    calibrated, checked = pieces([many], "dynamic")
    assert [len(each) for each in calibrated] == [25, 25, 25] and [len(each) for each in checked] == [25]
    calibrated, checked = pieces([many], 8)
    assert {len(each) for each in (*calibrated, *checked)} == {8} and len(calibrated) == 10 and len(checked) == 3
    calibrated, checked = pieces([many[:1]], "dynamic")
    assert len(calibrated) == len(checked) == 1


# --------------------------------------------------------------------------------------------- refused


@torch.library.custom_op("espalier_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Custom(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = twice(x)
        return found


class Svd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x * torch.linalg.svdvals(x.flatten(1).T @ x.flatten(1)).sum()
        return found


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Fixed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(4, 5, 6, 6)


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError("of its own")


@pytest.mark.parametrize(
    ("middle", "ending", "message"),
    [
        (Custom, ".onnx", r"layer middle \(Custom\) runs espalier_tests\.twice\S*, which ONNX lacks"),
        (Svd, ".onnx", r"layer middle \(Svd\) runs aten\._linalg_svd\S*, which ONNX lacks"),
        (
            Branch,
            ".pt2",
            r"layer middle \(Branch\) does what a graph of operations cannot hold at \S+test_exporting",
        ),
    ],
)
def test_an_operation_that_cannot_be_exported_is_named_with_its_layer(
    middle: type[nn.Module], ending: str, message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ExportError, match=message) as raised:
        espalier.export(Tiny(middle()), IMAGES, tmp_path / f"network{ending}", batch=4)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr().out == ""


def test_a_network_that_does_not_run_on_its_inputs(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"not run on the example inputs: layer middle \(Failing\) fails at \S+: of"
    ):
        espalier.export(Tiny(Failing()), IMAGES, tmp_path / "network.onnx")
    with pytest.raises(ConfigError, match=r"not run on the calibration inputs: layer conv \(Conv2d\) fails"):
        espalier.export(Tiny(), IMAGES, tmp_path / "network.onnx", int8=[IMAGES[:, :1]])
    assert not list(tmp_path.iterdir())


def test_a_network_with_a_fixed_batch_says_which(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Tiny runs with a fixed number of examples alone.*: write batch=4"):
        espalier.export(Tiny(Fixed()), IMAGES, tmp_path / "network.pt2")
    assert espalier.export(Tiny(Fixed()), IMAGES, tmp_path / "network.pt2", batch=4).batches == (4,)


def test_an_operation_that_the_runtime_lacks_is_named_with_its_layer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names: list[str] = []

    def refuse(model: bytes, *_: Any, **__: Any) -> None:
        names.extend(each.name for each in onnx.load_from_string(model).graph.node if each.op_type == "Relu")
        raise RuntimeError(f"Could not find an implementation for Relu(14) node with name '{names[0]}'\nand so on")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    message = r"ONNX Runtime cannot run Relu in layer middle \(ReLU\): Could not find"
    with pytest.raises(ExportError, match=message) as raised:
        espalier.export(Tiny(), IMAGES, tmp_path / "network.onnx")
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_that_gives_other_outputs_is_not_written(
    ending: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for package in FORMATS[ending].packages:
        pytest.importorskip(package)
    file = tmp_path / f"network{ending}"
    file.write_text("that of before")
    kind = type(FORMATS[ending])

    class Other(kind):  # type: ignore[misc, valid-type]
        def write(self, content: formats.Content, path: Path) -> list[Path]:
            with torch.no_grad():
                network = Tiny()
                network.load_state_dict(content.network.state_dict())
                network.linear.bias[1] += 0.1
            written: list[Path] = super().write(dataclasses.replace(content, network=network.eval()), path)
            return written

    format = FORMATS[ending]
    monkeypatch.setitem(FORMATS, ending, Other())
    with pytest.raises(ExportError, match=r"not written, as it gives other outputs.*output 0 differs by"):
        espalier.export(Tiny(), IMAGES, file)
    assert [each.name for each in tmp_path.iterdir()] == [file.name] and file.read_text() == "that of before"
    monkeypatch.setitem(FORMATS, ending, format)
    espalier.export(Tiny(), IMAGES, file)
    assert file.read_bytes()[:4] != b"that"


def test_8_bits_that_do_not_do_are_not_written(tmp_path: Path) -> None:
    """Here the steps of 8 bits are as large as the differences of what a layer gives."""
    network = Tiny().eval()
    network.conv.bias = nn.Parameter(torch.full((5,), 1e4))
    network.linear.bias = nn.Parameter(-network(IMAGES).mean(0).detach())
    with pytest.raises(ExportError, match="8 bits do not do for this network: top-1 agrees on"):
        espalier.export(network, IMAGES, tmp_path / "network.onnx", int8=[IMAGES])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("network.tflite", {}, r"ends in \.onnx, \.pt2, \.xml, \.safetensors, got 'network\.tflite'"),
        ("network", {}, "a network is exported to a file that ends in"),
        ("network.onnx", {"batch": 0}, "batch must be a whole number from 1, or 'dynamic', got 0"),
        ("network.onnx", {"batch": True}, "batch must be a whole number from 1"),
        ("network.onnx", {"opset": 9}, r"opset must be a whole number from 18 to \d+, got 9"),
        ("network.pt2", {"opset": 18}, r"opset is of ONNX, and network\.pt2 is not made of it"),
        ("network.pt2", {"int8": [IMAGES]}, r"8-bit integers are for \.onnx and \.xml, got network\.pt2"),
        ("network.onnx", {"int8": IMAGES}, "int8 takes batches of calibration inputs, such as .* got a Tensor"),
        ("network.onnx", {"int8": []}, "int8 takes batches of calibration inputs.*got none"),
        ("network.onnx", {"tolerance": 0}, "tolerance must lie between 0 and 1, got 0"),
        ("network.onnx", {"tolerance": "x"}, "tolerance must lie between 0 and 1, got 'x'"),
        ("network.onnx", {"metadata": {"x": object()}}, "metadata must be what JSON can hold"),
        ("network.onnx", {"metadata": {"widths": 1}}, "metadata must not have the names .*got widths"),
    ],
)
def test_arguments_out_of_range(file: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        espalier.export(Tiny(), IMAGES, tmp_path / file, **options)
    assert not list(tmp_path.iterdir())


def test_what_is_no_network_and_what_is_not_in_float32(tmp_path: Path) -> None:
    something: Any = 3
    with pytest.raises(ConfigError, match=r"is a torch\.nn\.Module, got an object of type int"):
        espalier.export(something, IMAGES, tmp_path / "network.onnx")
    with pytest.raises(ConfigError, match=r"conv\.weight is in bfloat16.*call network\.float\(\)"):
        espalier.export(Tiny().bfloat16(), IMAGES, tmp_path / "network.onnx")
    with pytest.raises(ConfigError, match="dimension 0 of the first input must be the batch"):
        espalier.export(Tiny(), torch.tensor(1.0), tmp_path / "network.onnx")


@pytest.mark.parametrize(("ending", "extra"), [(".onnx", "onnx"), (".xml", "openvino,onnx")])
def test_a_format_whose_packages_are_missing_names_the_extra(
    ending: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for package in ("onnx", "openvino"):
        monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    with pytest.raises(MissingPackage, match=rf"ends in {ending} needs .*: pip install 'espalier\[{extra}\]'"):
        espalier.export(Tiny(), IMAGES, tmp_path / f"network{ending}")


def test_metadata_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "other.pt2").write_text("other")
    with pytest.raises(ArtefactError, match="has no metadata of espalier, or cannot be read"):
        read_metadata(tmp_path / "other.pt2")
    with pytest.raises(ArtefactError, match="ends in none of"):
        read_metadata(tmp_path / "other.txt")
