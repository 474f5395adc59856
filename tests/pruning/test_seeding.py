"""Numbers from a seed leave the generators as they were."""

from __future__ import annotations

import pytest
import torch

from espalier.pruning.seeding import seeded


def test_numbers_are_those_of_the_seed_and_the_generator_goes_on_as_before() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(7):
        drawn = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.gpu
def test_generators_of_gpus_go_on_as_before() -> None:
    torch.cuda.manual_seed_all(5)
    expected = torch.rand(3, device="cuda")
    torch.cuda.manual_seed_all(5)
    with seeded(7):
        drawn = torch.rand(3, device="cuda")
    assert torch.equal(torch.rand(3, device="cuda"), expected)
    torch.cuda.manual_seed(7)
    assert torch.equal(torch.rand(3, device="cuda"), drawn)
