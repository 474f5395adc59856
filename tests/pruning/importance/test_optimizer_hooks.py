"""Any training loop inside the block steps along loss + strength R, whatever optimiser and wrapper it uses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import distribute_tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

import espalier
from espalier.errors import ConfigError
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.importance.regularizer import Regularizer
from espalier.pruning.importance.regularizers import REGULARIZERS

STRENGTH = 0.03


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.block, self.back = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.back(torch.relu(self.block(torch.relu(self.norm(self.stem(x))))))
        logits: Tensor = self.head(torch.cat([x, y], 1).mean((2, 3)))
        return logits


@cache
def graph() -> ChannelGraph:
    return espalier.trace(Small(), torch.zeros(1, 2, 4, 4))


@cache
def oicsr() -> Regularizer:
    return REGULARIZERS["oicsr_gl"](graph())


def network() -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small()


def batches(steps: int = 4) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        yield torch.randn(6, 2, 4, 4, generator=generator), torch.randint(2, (6,), generator=generator)


def penalty(model: nn.Module, strength: float = STRENGTH) -> Tensor:
    return strength * oicsr()(dict(model.named_parameters()))


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor], by_hand: bool = False) -> Tensor:
    loss = F.cross_entropy(model(batch[0]).float(), batch[1])
    return loss + penalty(model) if by_hand else loss


Make = Callable[[Any], Optimizer]


def loop(model: nn.Module, optimizer: Optimizer, by_hand: bool = False) -> None:
    for batch in batches():
        optimizer.zero_grad()
        loss_of(model, batch, by_hand).backward()
        optimizer.step()


def with_closure(model: nn.Module, optimizer: Optimizer, by_hand: bool = False) -> list[float]:
    told = []
    for batch in batches():

        def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch, by_hand)
            loss.backward()
            return loss

        told.append(float(torch.as_tensor(optimizer.step(closure)).detach()))  # type: ignore[arg-type]
    return told


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def both(
    make: Make,
    train: Callable[[nn.Module, Optimizer, bool], Any] = loop,
    prepare: Callable[[nn.Module], Any] = lambda model: model,
) -> tuple[nn.Module, nn.Module]:
    """The network trained in the block, and by hand; neither as it was."""
    inside, by_hand, untouched = network(), network(), network()
    for model in (inside, by_hand):
        prepare(model)
    with espalier.regularized(inside, graph(), "oicsr_gl", strength=STRENGTH):
        told = train(inside, make(inside.parameters()), False)
    assert train(by_hand, make(by_hand.parameters()), True) == told
    assert not same(by_hand, untouched)
    return inside, by_hand


MAKERS: dict[str, Make] = {
    "sgd": partial(SGD, lr=0.1),
    "decay": partial(SGD, lr=0.1, weight_decay=0.01, momentum=0.9),
    "nesterov": partial(SGD, lr=0.1, momentum=0.9, nesterov=True),
    "adam": partial(Adam, lr=0.01),
    "adamw": partial(AdamW, lr=0.01),
    "foreach": partial(AdamW, lr=0.01, foreach=True),
    "fused sgd": partial(SGD, lr=0.1, momentum=0.9, fused=True),
    "fused": partial(AdamW, lr=0.01, fused=True),
    "tensor rate": lambda p: Adam(p, lr=torch.tensor(0.01)),
}


@pytest.mark.parametrize("train", [loop, with_closure])
@pytest.mark.parametrize("name", MAKERS)
def test_equal_to_the_loss_with_the_penalty_to_the_last_bit(name: str, train: Any) -> None:
    inside, by_hand = both(MAKERS[name], train)
    assert same(inside, by_hand)


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_searches_along_the_loss_with_the_penalty(search: str | None) -> None:
    inside, by_hand = both(partial(torch.optim.LBFGS, lr=0.1, max_iter=5, line_search_fn=search), with_closure)
    assert same(inside, by_hand)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_every_regulariser(name: str) -> None:
    inside, by_hand = network(), network()
    made = REGULARIZERS[name](graph(), "sqrt_size", True)
    with espalier.regularized(
        inside, graph(), name, strength=STRENGTH, weighting="sqrt_size", with_norms=True, ramp=3
    ):
        loop(inside, SGD(inside.parameters(), 0.1))
    optimizer = SGD(by_hand.parameters(), 0.1)
    for step, batch in enumerate(batches()):
        optimizer.zero_grad()
        strength = STRENGTH * min(1.0, (step + 1) / 3)
        (loss_of(by_hand, batch) + strength * made(dict(by_hand.named_parameters()))).backward()
        optimizer.step()
    assert same(inside, by_hand)


def test_added_once_per_step_not_per_backward_pass() -> None:
    def accumulate(model: nn.Module, optimizer: Optimizer, by_hand: bool) -> None:
        for number, batch in enumerate(batches(6)):
            last = number % 3 == 2
            loss = loss_of(model, batch) / 3
            (loss + penalty(model) if by_hand and last else loss).backward()
            if last:
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)

    inside, by_hand = both(partial(SGD, lr=0.1), accumulate)
    for one, other in zip(inside.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_several_optimisers_share_the_gradient_of_one_backward_pass() -> None:
    def train(model: Any, _: Optimizer, by_hand: bool) -> None:
        parts = [[*model.stem.parameters(), *model.back.parameters()], [*model.block.parameters()]]
        optimizers = [SGD(parts[0], 0.1), Adam(parts[1], 0.01)]
        for batch in batches():
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_of(model, batch, by_hand).backward()
            for optimizer in optimizers:
                optimizer.step()

    assert same(*both(partial(SGD, lr=0.1), train))


@pytest.mark.parametrize("closures", [False, True])
def test_several_optimisers_each_with_a_backward_pass_of_its_own(closures: bool) -> None:
    def train(model: Any, _: Optimizer, by_hand: bool) -> None:
        parts = [[*model.stem.parameters(), *model.back.parameters()], [*model.block.parameters()]]
        optimizers = [SGD(parts[0], 0.1), Adam(parts[1], 0.01)]
        for batch in batches():
            for optimizer in optimizers:

                def closure(batch: tuple[Tensor, Tensor] = batch) -> Tensor:
                    model.zero_grad(set_to_none=not closures)
                    loss = loss_of(model, batch, by_hand)
                    loss.backward()
                    return loss

                if closures:
                    optimizer.step(closure)  # type: ignore[arg-type]
                else:
                    closure()
                    optimizer.step()

    assert same(*both(partial(SGD, lr=0.1), train))


def test_a_part_that_the_loss_does_not_reach_is_regularised_and_a_frozen_one_is_not() -> None:
    class Half(Small):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.cat([x, self.norm(self.stem(x))], 1).mean((2, 3)))
            return logits

    inside, by_hand = Half(), Half()
    by_hand.load_state_dict(inside.state_dict())
    before = copy.deepcopy(inside)
    for model in (inside, by_hand):
        model.stem.requires_grad_(False)
    with espalier.regularized(inside, graph(), "oicsr_gl", strength=STRENGTH):
        loop(inside, SGD(inside.parameters(), 0.1))
    loop(by_hand, SGD(by_hand.parameters(), 0.1), by_hand=True)
    assert same(inside, by_hand)
    assert torch.equal(inside.stem.weight, before.stem.weight)
    assert not torch.equal(inside.block.weight, before.block.weight)


def test_what_the_optimiser_does_not_hold_stays_as_it_is() -> None:
    inside, by_hand = network(), network()
    with espalier.regularized(inside, graph(), "oicsr_gl", strength=STRENGTH):
        loop(inside, SGD(inside.block.parameters(), 0.1))
    loop(by_hand, SGD(by_hand.block.parameters(), 0.1), by_hand=True)
    assert same(inside, by_hand) and torch.equal(inside.back.weight, network().back.weight)


@pytest.mark.parametrize("proximal", [False, True])
def test_a_step_without_a_backward_pass_changes_nothing(proximal: bool) -> None:
    inside = network()
    with (
        pytest.warns(UserWarning, match=r"no optimiser has stepped a weight that the penalty is on"),
        espalier.regularized(inside, graph(), "oicsr_gl", strength=STRENGTH, proximal=proximal),
    ):
        SGD(inside.parameters(), 0.1).step()
    assert same(inside, network())


def test_sparse_gradients_become_dense() -> None:
    class Words(nn.Module):
        def __init__(self, sparse: bool = True) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(7, 4, sparse=sparse), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.words(x).mean(1))
            return logits

    inside = Words()
    by_hand = copy.deepcopy(inside)
    own = espalier.trace(Words(False), torch.zeros(1, 3, dtype=torch.long))
    made, x, y = REGULARIZERS["oicsr_gl"](own), torch.tensor([[0, 1, 1]]), torch.tensor([1])
    assert "words.weight" in made.tensors
    with espalier.regularized(inside, own, made, strength=STRENGTH):
        optimizer = SGD(inside.parameters(), 0.1)
        F.cross_entropy(inside(x), y).backward()
        optimizer.step()
    (F.cross_entropy(by_hand(x), y) + STRENGTH * made(dict(by_hand.named_parameters()))).backward()
    SGD(by_hand.parameters(), 0.1).step()
    torch.testing.assert_close(inside.state_dict(), by_hand.state_dict())


# ------------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize("fused", [False, True])
def test_scaled_gradients(fused: bool) -> None:
    """The scale of the fifth step is too great: the step is skipped, with its penalty."""

    def train(model: nn.Module, optimizer: Optimizer, by_hand: bool) -> list[float]:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        scales = []
        for number, (x, y) in enumerate(batches(6)):
            optimizer.zero_grad()
            loss = loss_of(model, (x, y), by_hand)
            scaler.scale(loss * (float("inf") if number == 4 else 1)).backward()
            before = copy.deepcopy(model.state_dict()) if number == 4 else None
            scaler.step(optimizer)
            if before is not None:
                assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
            scaler.update()
            scales.append(scaler.get_scale())
        return scales

    assert same(*both(partial(AdamW, lr=0.01, fused=fused), train))


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_takes_no_proximal_step(fused: bool) -> None:
    model = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    with (
        pytest.warns(UserWarning, match="nothing was regularised"),
        espalier.regularized(model, graph(), "oicsr_gl", strength=STRENGTH, proximal=True),
    ):
        optimizer = AdamW(model.parameters(), lr=0.01, fused=fused)
        scaler.scale(loss_of(model.eval(), next(batches())) * float("inf")).backward()
        scaler.step(optimizer)
    assert same(model, network())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    model = network()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1e-3)  # squares that float16 cannot hold
    model.to(dtype)
    wide = copy.deepcopy(model).float()
    penalty(wide, 1.0).backward()
    with espalier.regularized(model, graph(), "oicsr_gl", strength=1.0):
        model.head.bias.grad = torch.zeros_like(model.head.bias)
        SGD(model.parameters(), 0.0).step()
    for name in oicsr().tensors:
        found, wanted = model.get_parameter(name).grad, wide.get_parameter(name).grad
        assert found is not None and wanted is not None and found.dtype == dtype and bool(wanted.any())
        torch.testing.assert_close(found, wanted.to(dtype))


def test_autocast_leaves_the_penalty_in_float32() -> None:
    def train(model: nn.Module, optimizer: Optimizer, by_hand: bool) -> None:
        for batch in batches():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(model, batch)
            (loss + penalty(model) if by_hand else loss).backward()
            with torch.autocast("cpu", torch.bfloat16):
                optimizer.step()

    assert same(*both(partial(SGD, lr=0.1), train))


# ------------------------------------------------------------------------------------- proximal steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_proximal_step_follows_with_the_learning_rate_of_the_step(dtype: torch.dtype) -> None:
    inside, by_hand = network().to(dtype), network().to(dtype)

    def train(model: Small, prox: bool) -> None:
        groups: Any = [
            {"params": [p for p in model.parameters() if p.dim() > 1]},
            {"params": [model.head.bias], "lr": 1.0},
        ]
        optimizer = SGD(groups, lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        for step, (x, y) in enumerate(batches()):
            optimizer.zero_grad()
            loss_of(model, (x.to(dtype), y)).backward()
            optimizer.step()
            schedule.step()
            if prox:
                wide = {name: p.detach().float() for name, p in model.named_parameters()}
                oicsr().proximal_step(wide, 0.1 * 0.5**step * 2.5)
                for name in oicsr().tensors:
                    model.get_parameter(name).data.copy_(wide[name])

    with espalier.regularized(inside, graph(), "oicsr_gl", strength=2.5, proximal=True):
        train(inside, False)
    train(by_hand, True)
    assert same(inside, by_hand)
    energies = espalier.channel_energies(inside, graph())
    assert bool((energies < 1e-9).any()) and bool((energies > 0.01).any())


def test_a_proximal_step_needs_all_weights_in_one_optimiser_with_one_rate() -> None:
    def refused(match: str, groups: Any) -> None:
        loss_of(model, next(batches())).backward()
        with (
            pytest.raises(ConfigError, match=match),
            espalier.regularized(model, graph(), "oicsr_gl", strength=STRENGTH, proximal=True),
        ):
            SGD(groups, 0.1).step()

    model = network()
    refused("one optimiser with one learning rate: stem.weight is frozen or not in it", model.block.parameters())
    rest = [parameter for parameter in model.parameters() if parameter is not model.block.weight]
    refused(
        "its rates are 0.1, 0.2; use proximal=False", [{"params": rest}, {"params": model.block.weight, "lr": 0.2}]
    )
    model.stem.requires_grad_(False)
    refused("stem.weight is frozen or not in it", model.parameters())


# ------------------------------------------------------------------------------------------- wrappers


class Wrapper(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="aot_eager")  # type: ignore[return-value]


@pytest.mark.parametrize("wrap", [Wrapper, nn.DataParallel, compiled])
@pytest.mark.parametrize("given", ["wrapper", "network"])
def test_a_wrapper_trains_the_same_parameters(wrap: Callable[[nn.Module], nn.Module], given: str) -> None:
    inside, by_hand = network(), network()
    wrapped = wrap(inside)
    with espalier.regularized(wrapped if given == "wrapper" else inside, graph(), "oicsr_gl", strength=STRENGTH):
        loop(wrapped, SGD(wrapped.parameters(), 0.1))
    loop(by_hand, SGD(by_hand.parameters(), 0.1), by_hand=True)
    for one, other in zip(inside.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_distributed_data_parallel(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        inside, by_hand = network(), network()
        wrapped = nn.parallel.DistributedDataParallel(inside)
        with espalier.regularized(wrapped, graph(), "oicsr_gl", strength=STRENGTH):
            loop(wrapped, SGD(wrapped.parameters(), 0.1))
        loop(by_hand, SGD(by_hand.parameters(), 0.1), by_hand=True)
        assert same(inside, by_hand)
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        inside.block.weight = nn.Parameter(distribute_tensor(inside.block.weight.detach(), mesh))
        inside.block.weight.grad = inside.block.weight.detach().clone()
        with (
            pytest.raises(ConfigError, match=r"whole on each process: block.weight is sharded"),
            espalier.regularized(inside, graph(), "oicsr_gl", strength=STRENGTH),
        ):
            SGD(inside.parameters(), 0.1).step()
    finally:
        torch.distributed.destroy_process_group()


class Doubled(SGD):
    """An optimiser whose step is that of its parent, which has hooks too."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Outer(Optimizer):
    """An optimiser around another, which has the same parameters."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {})
        self.inner = SGD(self.param_groups, 0.1)

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


class Own(Optimizer):
    """A user's optimiser."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 0.1})

    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.sub_(parameter.grad.sign(), alpha=group["lr"])
        return loss


@pytest.mark.parametrize("train", [loop, with_closure])
@pytest.mark.parametrize("make", [partial(Doubled, lr=0.1), Outer, Own])
def test_optimisers_of_users(make: Make, train: Any) -> None:
    SGD([torch.zeros(1)], 0.1)  # PyTorch gives a class its hooks when it is first made
    assert same(*both(make, train))


def test_an_optimiser_whose_step_raised_goes_on() -> None:
    def train(model: nn.Module, optimizer: Optimizer, by_hand: bool) -> None:
        def fails() -> float:
            raise KeyError("a batch")

        with pytest.raises(KeyError):
            optimizer.step(fails)
        loop(model, optimizer, by_hand)

    assert same(*both(partial(SGD, lr=0.1), train))


# ------------------------------------------------------------------------------------------ the block


def test_blocks_within_each_other_add_up() -> None:
    inside, by_hand = network(), network()
    with (
        espalier.regularized(inside, graph(), "oicsr_gl", strength=STRENGTH / 4),
        espalier.regularized(inside, graph(), oicsr(), strength=3 * STRENGTH / 4),
    ):
        loop(inside, SGD(inside.parameters(), 0.1))
    loop(by_hand, SGD(by_hand.parameters(), 0.1), by_hand=True)
    for one, other in zip(inside.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_outside_the_block_and_after_an_error_nothing_is_added() -> None:
    inside, without = network(), network()
    with (
        pytest.raises(KeyError),
        espalier.regularized(inside, graph(), "oicsr_gl", strength=STRENGTH),
    ):
        raise KeyError("the loop")
    loop(inside, SGD(inside.parameters(), 0.1))
    loop(without, SGD(without.parameters(), 0.1))
    assert same(inside, without)


def test_another_network_is_left_alone() -> None:
    inside, other, without = network(), network(), network()
    with (
        pytest.warns(UserWarning, match="nothing was regularised") as told,
        espalier.regularized(inside, graph(), "oicsr_gl", strength=STRENGTH),
    ):
        loop(other, SGD(other.parameters(), 0.1))
    loop(without, SGD(without.parameters(), 0.1))
    assert same(other, without) and told[0].filename == __file__


@pytest.mark.parametrize(("name", "strength"), [("none", 1.0), ("oicsr_gl", 0.0)])
def test_no_penalty_is_no_reason_to_warn(name: str, strength: float) -> None:
    with espalier.regularized(network(), graph(), name, strength=strength):
        pass


def test_a_parameter_that_was_replaced() -> None:
    model = network()
    with espalier.regularized(model, graph(), "oicsr_gl", strength=STRENGTH):
        old = SGD(model.parameters(), 0.1)
        model.block.weight = nn.Parameter(model.block.weight.detach().clone())
        with pytest.raises(
            ConfigError, match=r"^block.weight of the network was replaced while the block was open"
        ):
            loop(model, old)
        loop(model, SGD(model.parameters(), 0.1))
        nn.utils.parametrizations.weight_norm(model.block)
        with pytest.raises(ConfigError, match=r"^block.weight is no longer a parameter of the network"):
            loop(model, SGD(model.parameters(), 0.1))


def test_weights_on_several_devices() -> None:
    model = network()
    model.block.to("meta")
    model.head.bias.grad = torch.zeros(2)
    with (
        pytest.raises(ConfigError, match=r"^the weights of the penalty must lie on one device, got cpu, meta$"),
        espalier.regularized(model, graph(), "oicsr_gl", strength=STRENGTH),
    ):
        SGD([p for p in model.parameters() if p.device.type == "cpu"], 0.1).step()


def test_an_optimiser_that_is_given_the_scaler() -> None:
    class Unscales(Own):
        def step(self, closure: Any = None, grad_scaler: Any = None) -> Any:
            return super().step(closure)

    model = network()
    loss_of(model, next(batches())).backward()
    with (
        pytest.raises(ConfigError, match="Unscales unscales its gradients itself"),
        espalier.regularized(model, graph(), "oicsr_gl", strength=STRENGTH),
    ):
        Unscales(model.parameters()).step(grad_scaler=torch.amp.GradScaler("cpu"))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"regularizer": "oicsr"}, "regularizer must be one of oicsr_gl, .*, got 'oicsr'"),
        ({"strength": -1.0}, "strength and ramp must be finite and not negative, got -1.0 and 0"),
        ({"ramp": float("inf")}, "got 0.03 and inf"),
        ({"network": nn.Linear(2, 2)}, r"it has 54 numbers in stem.weight, the network none"),
        (
            {"network": nn.Sequential(Small(), Small())},
            "fits more than one network in the module: give one of 0, 1",
        ),
        ({"regularizer": "oicsr_gl", "weighting": "size"}, "weighting must be none or sqrt_size"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], match: str) -> None:
    given: Any = {
        "network": network(),
        "graph": graph(),
        "regularizer": "oicsr_gl",
        "strength": STRENGTH,
    } | arguments
    with pytest.raises(ConfigError, match=match), espalier.regularized(**given):
        pass


def test_a_regulariser_that_is_made_must_be_of_the_graph_and_has_its_options() -> None:
    other = REGULARIZERS["oicsr_gl"](
        espalier.trace(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), torch.ones(1, 2))
    )
    with (
        pytest.raises(ConfigError, match="made for the graph that is given"),
        espalier.regularized(network(), graph(), other, strength=1.0),
    ):
        pass
    with (
        pytest.raises(ConfigError, match="weighting and with_norms go with the name"),
        espalier.regularized(network(), graph(), oicsr(), strength=1.0, with_norms=True),
    ):
        pass
