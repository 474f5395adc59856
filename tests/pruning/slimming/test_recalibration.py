"""BN statistics after recalibration against the same passes made by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from espalier.pruning.networks import build
from espalier.pruning.slimming.recalibration import recalibrate_bn


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3)
        self.dropout = nn.Dropout(dropout)
        self.conv2, self.bn2 = nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(torch.relu(self.bn1(self.conv1(x))))
        out: Tensor = self.bn2(self.conv2(x))
        return out


def batches(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Of different sizes and scales, so that a mean over batches is not one over images.
    return [(1 + i) * torch.randn(2 + 3 * i, 3, 8, 8, generator=generator) + i for i in range(count)]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance per channel, written out."""
    count = x.numel() / x.shape[1]
    mean = x.sum((0, 2, 3)) / count
    return mean, (x - mean.view(-1, 1, 1)).square().sum((0, 2, 3)) / (count - 1)


def by_hand(net: Net, images: list[Tensor]) -> dict[str, Tensor]:
    """Every batch is normalised by its own statistics; the running ones are the mean over batches."""
    found: dict[str, list[Tensor]] = {"mean1": [], "var1": [], "mean2": [], "var2": []}
    with torch.no_grad():
        for x in images:
            y = net.conv1(x)
            mean, var = moments(y)
            found["mean1"].append(mean)
            found["var1"].append(var)
            biased = var * (1 - y.shape[1] / y.numel())
            y = (y - mean.view(-1, 1, 1)) / (biased.view(-1, 1, 1) + net.bn1.eps).sqrt()
            y = torch.relu(y * net.bn1.weight.view(-1, 1, 1) + net.bn1.bias.view(-1, 1, 1))
            mean, var = moments(net.conv2(y))
            found["mean2"].append(mean)
            found["var2"].append(var)
    return {name: torch.stack(values).mean(0) for name, values in found.items()}


@pytest.mark.parametrize("dropout", [0.0, 0.9])
@pytest.mark.parametrize("training", [True, False])
def test_running_statistics_are_means_over_batches(dropout: float, training: bool) -> None:
    """Dropout is off: it would change the second layer's."""
    net = Net(dropout).train(training)
    for parameter in net.bn1.parameters():
        nn.init.normal_(parameter)
    for norm in (net.bn1, net.bn2):
        norm.get_buffer("running_mean").normal_()
        norm.get_buffer("running_var").uniform_(1, 2)
    recalibrate_bn(net, batches())
    expected = by_hand(net, batches())
    for norm, number in ((net.bn1, 1), (net.bn2, 2)):
        torch.testing.assert_close(norm.running_mean, expected[f"mean{number}"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(norm.running_var, expected[f"var{number}"], rtol=1e-4, atol=1e-5)


def test_everything_else_is_as_before() -> None:
    net = Net().train()
    before = copy.deepcopy(net.state_dict())
    recalibrate_bn(net, batches())
    assert (net.bn1.momentum, net.bn2.momentum) == (0.3, 0.1)
    assert not any(module.training for module in net.modules())
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name]) != name.endswith(statistics)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())


def test_a_second_time_changes_nothing() -> None:
    net = Net()
    recalibrate_bn(net, batches())
    once = copy.deepcopy(net.state_dict())
    recalibrate_bn(net, iter(batches()))
    assert all(torch.equal(tensor, once[name]) for name, tensor in net.state_dict().items())


def test_on_its_own_batch_the_network_normalises_as_in_training() -> None:
    net = build("resnet20")
    images = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = copy.deepcopy(net).train()(images)
        stale = net.eval()(images)
        recalibrate_bn(net, [images])
        got = net(images)
    # The running variance is unbiased, the one of a batch in training is not: that is all that differs.
    torch.testing.assert_close(got, expected, rtol=0.01, atol=0.01 * float(expected.abs().max()))
    assert not torch.allclose(stale, expected, rtol=0.01, atol=0.01 * float(expected.abs().max()))


def test_networks_without_norms_that_track_are_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.BatchNorm2d(4, track_running_stats=False))
    before = copy.deepcopy(net.train().state_dict())

    def never() -> Tensor:
        raise AssertionError("there is nothing to recalibrate, so nothing is run")

    recalibrate_bn(net, (never() for _ in range(1)))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not net.training


def test_a_forward_pass_that_raises_leaves_the_layers_as_they_were() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3))
    with pytest.raises(RuntimeError):
        recalibrate_bn(network, [torch.zeros(2, 5, 8, 8)])
    assert network[1].momentum == 0.3 and not network[1].training


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("affine", [True, False])
def test_statistics_are_those_of_training_mode(
    precision: torch.dtype, memory_format: torch.memory_format, affine: bool
) -> None:
    """Whatever the format: channels-last batches go through code of our own."""
    generator = torch.Generator().manual_seed(0)
    images = [
        3 + torch.randn(n, 5, side, 12, generator=generator) for n, side in ((9, 12), (4, 12), (3, 7), (1, 3))
    ]
    images = [each.to(precision).contiguous(memory_format=memory_format) for each in images]
    plain = nn.BatchNorm2d(5, affine=affine, momentum=None)
    if affine:
        nn.init.normal_(plain.weight, generator=generator)
        nn.init.normal_(plain.bias, generator=generator)
    ours = copy.deepcopy(plain)
    seen: list[Tensor] = []
    ours.register_forward_hook(lambda _, __, output: seen.append(output))
    recalibrate_bn(ours, images)
    with torch.no_grad():
        expected = [plain(batch) for batch in images]
    for got, wanted in zip(seen, expected, strict=True):
        assert got.dtype == wanted.dtype and got.stride() == wanted.stride()
        tolerance = 1e-5 if precision == torch.float32 else 0.02
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    for (name, tensor), (_, other) in zip(ours.state_dict().items(), plain.state_dict().items(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-5, atol=1e-5, msg=name)
    assert "forward" not in ours.__dict__
