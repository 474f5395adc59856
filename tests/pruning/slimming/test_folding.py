"""A network without its norms against itself."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from espalier.pruning.networks import build
from espalier.pruning.slimming.folding import foldable, without_norms
from espalier.pruning.trace import trace


def looks_trained(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            for tensor in (module.weight, module.get_buffer("running_var")):
                if tensor is not None:
                    nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
            for tensor in (module.bias, module.running_mean):
                if tensor is not None:
                    nn.init.normal_(tensor, std=0.2, generator=generator)
    return network.eval()


@pytest.mark.parametrize(("name", "pairs"), [("resnet20", 19), ("vgg11_bn", 8), ("mobilenet_v2", 52)])
def test_it_computes_the_same_without_norms_and_is_as_it_was_afterwards(name: str, pairs: int) -> None:
    network = looks_trained(build(name))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = foldable(network, trace(network, images))
    assert len(found) == pairs
    before = copy.deepcopy(network.state_dict())
    parameters = list(network.parameters())
    with torch.no_grad():
        expected = network(images)
        with without_norms(network, found, torch.float32):
            got = network(images)
        assert torch.equal(network(images), expected)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert all(one is other for one, other in zip(network.parameters(), parameters, strict=True))
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert not any("forward" in module.__dict__ for module in network.modules())


class Odd(nn.Module):
    """One norm that can be folded, and five that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.plain_norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4, affine=False)
        self.twice, self.twice_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.read, self.read_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.shown, self.shown_norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.alone = nn.BatchNorm2d(4)
        self.padded, self.padded_norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.plain_norm(self.plain(x)))
        x = torch.relu(self.twice_norm(self.twice(self.twice_norm(self.twice(x)))))
        y = self.read(x)
        x = torch.relu(self.alone(y + self.read_norm(y)))
        x = self.shown_norm(self.shown(x)) * self.shown.weight.mean()
        x = self.padded_norm(F.pad(self.padded(x), (1, 1, 1, 1)))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def test_only_what_nothing_else_reads_is_folded() -> None:
    network = looks_trained(Odd())
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = foldable(network, trace(network, images))
    assert found == [("plain", "plain_norm")]
    with torch.no_grad():
        expected = network(images)
        with without_norms(network, found, torch.float32):
            torch.testing.assert_close(network(images), expected)


def test_norms_in_training_mode_stay() -> None:
    network = looks_trained(build("resnet20"))
    images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found = foldable(network, trace(network, images))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
    with torch.no_grad():
        expected = network(images)
        with without_norms(network, found, torch.float32):
            assert torch.equal(network(images), expected)


def test_a_pass_that_raises_leaves_the_network_as_it_was() -> None:
    network = looks_trained(build("resnet20"))
    found = foldable(network, trace(network, torch.zeros(1, 3, 16, 16)))
    with pytest.raises(RuntimeError), without_norms(network, found, torch.float32):
        network(torch.zeros(1, 7, 16, 16))
    assert not any("forward" in module.__dict__ for module in network.modules())
    assert all(module.bias is None for module in network.modules() if isinstance(module, nn.Conv2d))
