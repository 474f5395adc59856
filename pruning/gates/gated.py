"""Gates in anybody's training loop: weights are multiplied within every pass, and gates step when weights do.

Notation, beside that of `gates`:
    w_g        sum of p over the channels of group g: its expected width
    C(w)       what widths cost, a polynomial (`costs`)
    L(t)       limit, on the way from the cost that gates begin with to the one that is asked for
    h          C(w) / L(t) - 1, of the limit that is exceeded most

Gates minimise the loss plus m h + r h^2 / 2, and m <- m + a h after each step: the method of multipliers for h = 0
(Hestenes 1969, doi 10.1007/BF00927673). So there is no strength or threshold to choose.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from espalier.errors import ConfigError
from espalier.pruning.gates.gated_weights import GatedWeights
from espalier.pruning.gates.gates import GATES, Gate
from espalier.pruning.graph.allocation import check_budget, greedy
from espalier.pruning.graph.budget import Budget
from espalier.pruning.graph.channel_graph import ChannelGraph
from espalier.pruning.graph.costs import Floats, Ints
from espalier.pruning.importance.criterion import CARRIED
from espalier.pruning.importance.energy import ChannelNorms
from espalier.pruning.importance.optimizer_hooks import frames_above, network_in
from espalier.pruning.torch_private import OnceAPass, computed_weights

PREFIX = "espalier_gate_"
"""How the names of the buffers begin that a network has while it is gated."""
STEPS = 100
"""After how many steps t is 1/2, where nobody says how many there are."""
DESCENT = 0.5
"""The t at which the limit is the one that is asked for."""
PENALTY, ASCENT = 30.0, 0.03
"""r and a."""
BETAS, EPS = (0.9, 0.99), 1e-8
"""Of Adam."""


@contextmanager
def gated(
    network: nn.Module,
    graph: ChannelGraph,
    gate: str | Gate,
    budget: Budget | int,
    *,
    steps: int | None = None,
    seed: int = 0,
    floor: Ints | None = None,
    round_to: int = 1,
) -> Iterator[Gated]:
    """Learns gates on the channels of a network in a training loop of your own.

        with espalier.gated(network, graph, "hard_concrete", Budget(macs=0.5)) as gates:
            trainer.train()
        small = espalier.slim(network, graph, gates.keep)

    While the block is open, weights are multiplied by gates within every pass of the network. Their gradient
    comes with the loop's own backward pass, and they step, by Adam, when an optimiser steps weights of the
    network. As the block ends, the gates are multiplied into the weights for good, and what does not fit the
    budget is zeroed.

    - Names in the state dict stay as they are. A few buffers join them, ``espalier_gate_...``, which hold all that
      is learned: a checkpoint of the network within the block resumes it, to the last bit.
    - Noise depends on `seed` and the number of the step alone.
    - In eval mode gates have no noise. Copies made within the block work until it ends.
    - `GradScaler` and accumulated gradients work, and gradients that the loop zeroes are forgotten.
    - Networks trained by several processes are refused, as are those that compute layers again in the backward
      pass.

    Args:
        network: the network that the graph was traced from, or one of the same structure; or a module that holds
            it. Its own ``forward`` must be called as the network is, ``network(x)``.
        graph: its channel graph.
        gate: a name of `espalier.GATES`, or a gate.
        budget: of MACs, parameters or both; a whole number means MACs per example.
        steps: of the optimiser, that the training will take; by default t is 1 - 1 / (1 + step / 100).
        seed: of what gates draw.
        floor: (G,) fewest channels per group; one each by default.
        round_to: what the widths of layers are multiples of, at the end.

    Yields:
        The gates; `Gated.keep` is there once the block has ended.

    Raises:
        ConfigError: the graph is not that of the network, there is no such gate, the budget limits something that
            gates cannot be driven to, weights are computed from other tensors, as by weight norm, or the network
            is trained in a way that is refused.
        BudgetInfeasible: the budget cannot be reached.

    Warns:
        UserWarning: no optimiser has stepped a parameter of the network when the block ends.
    """
    if not isinstance(budget, Budget) and (isinstance(budget, bool) or not isinstance(budget, Integral)):
        raise ConfigError(
            f"budget must be a Budget, or a whole number of MACs, got {budget!r}: half is Budget(macs=0.5)"
        )
    if steps is not None and (type(steps) is not int or steps < 1):
        raise ConfigError(f"steps must be a whole number from 1, or None where nobody knows, got {steps!r}")
    made = Gated(network_in(network, graph), graph, _gate_of(gate), Budget.of(budget, graph), steps, seed)
    check_budget(graph, made.budget, floor, round_to)
    handles = made.attach()
    try:
        yield made
        made.fold(greedy(graph, made.scores, made.budget, floor, round_to))
    finally:
        for handle in handles:
            handle.remove()
        made.detach()
    if not made.steps:
        warnings.warn(
            "no optimiser has stepped a weight of the network after a pass of it, so that no gate was learned: "
            "open the block around the training, and call the network itself",
            stacklevel=3,
        )


def _gate_of(gate: str | Gate) -> Gate:
    if isinstance(gate, Gate):
        return gate
    if gate not in GATES:
        raise ConfigError(f"gate must be one of {', '.join(GATES)}, or a Gate, got {gate!r}")
    return GATES[gate]()


class Gated:
    """Gates of one network, while they are learned and afterwards.

    Attributes:
        graph: of the network.
        gate: the distribution.
        budget: in whole numbers.
        steps: that gates have taken.
        keep: bool (n_channels,), what fits the budget; once the block has ended.
        expected: metric -> cost of expected widths, when the block ended.
    """

    def __init__(
        self, network: nn.Module, graph: ChannelGraph, gate: Gate, budget: Budget, steps: int | None, seed: int
    ) -> None:
        if unlike := [metric for metric in budget.limits if metric not in ("macs", "params")]:
            raise ConfigError(f"gates are driven to MACs and parameters, and the budget limits {unlike[0]}")
        if not budget.limits:
            raise ConfigError("gates are driven to a budget, and this one limits nothing: Budget(macs=0.5)")
        if any(name.startswith(PREFIX) for name, _ in network.named_buffers(recurse=False)):
            raise ConfigError("this network is gated already: blocks cannot lie within each other")
        self.graph, self.gate, self.budget, self.steps = graph, gate, budget, 0
        self.keep, self.expected = torch.zeros(0, dtype=torch.bool), dict[str, float]()
        self._network, self._total, self._seed = network, steps, seed
        self._open, self._passes = True, 0
        self._leaf: Tensor | None = None  # v of the passes since the last step
        computed = {f"{path}." for path in computed_weights(network)}
        if layer := next((path for path in computed for slot in graph.slots if slot.tensor.startswith(path)), None):
            raise ConfigError(
                f"gates multiply weights, and those of {layer.rstrip('.')} are computed from other tensors, as by "
                "weight norm: take that off with torch.nn.utils.parametrize.remove_parametrizations"
            )
        self._weights = GatedWeights(network, graph)
        self._modes: dict[nn.Module, bool] = {}
        self._group_of = torch.from_numpy(graph.group_of)
        self._first = {m: float(cost) for m, cost in self.costs(gate.start(graph.n_channels), 0.0).items()}

    # -- in and out of the network

    def attach(self) -> list[Any]:
        """Gives the network its buffers and hooks: handles to take the hooks off."""
        device = next(self._network.parameters()).device
        v = self.gate.start(self.graph.n_channels).to(device)
        zeros = torch.zeros_like(v), torch.zeros_like(v), torch.zeros(()), torch.zeros(())
        for name, value in zip(("values", "mean", "square", "multiplier", "steps"), (v, *zeros), strict=True):
            self._network.register_buffer(PREFIX + name, value.to(device))
        return [
            self._network.register_forward_pre_hook(self._before_pass),
            self._network.register_forward_hook(self._after_pass, always_call=True),
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
            *OnceAPass(self._network, "gates").attach(),
        ]

    def detach(self) -> None:
        """Takes the buffers off the network, which is as it is without gates; copies of it no longer run."""
        self._open = False
        self._after_pass(self._network)  # of one that was interrupted
        for name in [name for name in self._network._buffers if name.startswith(PREFIX)]:
            delattr(self._network, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Gated:
        """Copies of the network share the gates; what is learned lies in the network's buffers."""
        return self

    def __reduce__(self) -> NoReturn:
        raise ConfigError("a network cannot be pickled while it is gated: save its state_dict")

    def _buffer(self, name: str, network: nn.Module | None = None) -> Tensor:
        return (network or self._network).get_buffer(PREFIX + name)

    # -- what is learned

    @property
    def progress(self) -> float:
        """How much of the training is done, in [0, 1]: T."""
        done = float(self._buffer("steps"))
        return min(1.0, done / self._total) if self._total else done / (done + STEPS)

    @property
    def scores(self) -> Floats:
        """By which channels are ranked, (n_channels,) float64: p at t = 0, where it is not rounded to 0 or 1."""
        found: Floats = self.gate.opening(self._buffer("values").double(), 0.0).detach().cpu().numpy()
        return found

    def costs(self, v: Tensor, t: float) -> dict[str, Tensor]:
        """Metric -> cost of the expected widths."""
        p = self.gate.opening(v, t).double().cpu()
        widths = p.new_zeros(len(self.graph.groups)).index_add(0, self._group_of, p)
        terms = {"macs": self.graph.mac_terms, "params": self.graph.param_terms}
        return {metric: terms[metric].expected(widths) for metric in self.budget.limits}

    def fold(self, widths: Ints) -> None:
        """Multiplies the gates into the weights, and zeroes what widths (G,) leave out."""
        graph, v = self.graph, self._buffer("values").float()
        self.steps = int(self._buffer("steps"))
        self.expected = {metric: float(cost) for metric, cost in self.costs(v, 1.0).items()}
        self.keep = graph.keep_best(self.scores, widths)
        settled = self.gate.settled(v)
        settled = torch.where(settled == 0, 1.0, settled)  # what is kept has its weights, where its gate was shut
        z = torch.where(self.keep.to(v.device), settled, 0.0)
        parameters = dict(self._network.named_parameters())
        with torch.no_grad():
            for name, weight in self._weights.multiplied(self._network, z).items():
                parameters[name].copy_(weight)
            ChannelNorms(graph, CARRIED, tensors=parameters).scale(parameters, self.keep.to(z))

    # -- passes

    def _before_pass(self, network: nn.Module, _: Any) -> None:
        if not self._open:
            raise ConfigError("a copy of a gated network runs in the block alone: use the network itself")
        if getattr(network, "_is_replica", False):
            raise ConfigError("gates are learned on one device, and DataParallel uses several")
        v = self._buffer("values", network)
        z = self.gate.settled(v)
        if network is self._network and network.training and torch.is_grad_enabled():
            if self._leaf is None or self._was_discarded(self._leaf):
                self._leaf, self._passes = v.detach().float().requires_grad_(), 0
            z = self.gate.sample(self._leaf, self._noise().to(v.device), self.progress)
            self._passes += 1
            if self.gate.freezes:
                self._modes = {each: each.training for each in network.modules()}
                for each in self._modes:
                    each.training = False
        self._weights.put_into(network, z)

    def _after_pass(self, network: nn.Module, *_: Any) -> None:
        self._weights.take_from(network)
        if network is self._network:
            for module, mode in self._modes.items():
                module.training = mode
            self._modes = {}

    def _was_discarded(self, leaf: Tensor) -> bool:
        """Whether the loop has thrown away the gradients that came with the gates' own."""
        gradients = (parameter.grad for parameter in self._network.parameters())
        return leaf.grad is not None and not any(
            each is not None and bool(each.count_nonzero()) for each in gradients
        )

    def _noise(self) -> Tensor:
        """U of this pass, which depends on the seed, the step, and the passes since it."""
        drawn = np.random.SeedSequence([self._seed, int(self._buffer("steps")), self._passes]).generate_state(1)
        generator = torch.Generator().manual_seed(int(drawn[0]))
        return torch.rand(self.graph.n_channels, generator=generator).clamp(1e-6, 1 - 1e-6)

    # -- steps

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Keeps frozen weights where they are: what has no gradient is not stepped."""
        if not self.gate.freezes or not self._steps(optimizer):
            return None
        self._freeze()
        given = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(given):
            return None

        def closure() -> Any:
            loss = given()
            self._freeze()
            return loss

        if len(args) > 1:
            return (args[0], closure, *args[2:]), kwargs
        return args, kwargs | {"closure": closure}

    def _freeze(self) -> None:
        for parameter in self._network.parameters():
            parameter.grad = None

    def _steps(self, optimizer: Optimizer) -> bool:
        """Whether an optimiser steps weights of the network."""
        own = {id(parameter) for parameter in self._network.parameters()}
        return any(id(held) in own for group in optimizer.param_groups for held in group["params"])

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Steps v and the multipliers, once per backward pass."""
        if self._leaf is None or self._leaf.grad is None or not self._steps(optimizer):
            return
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            if torch.distributed.get_world_size() > 1:
                raise ConfigError("gates are learned by one process, and this training has several")
        gradient, self._leaf = self._leaf.grad / _scale_of_loss(), None
        if not bool(gradient.isfinite().all()):
            return
        multiplier = self._buffer("multiplier")
        with torch.enable_grad():
            v = self._buffer("values").detach().float().requires_grad_()
            h = self.excess(v, self.progress)
            term = float(multiplier) * h + PENALTY / 2 * h.square() + self.gate.term(v).double().cpu()
            gradient += torch.autograd.grad(term, v)[0]
        with torch.no_grad():
            multiplier += ASCENT * float(h)
            self._adam(gradient)

    def excess(self, v: Tensor, t: float) -> Tensor:
        """H, a scalar, differentiable in v."""
        found = []
        for metric, cost in self.costs(v, t).items():
            first, limit = self._first[metric], self.budget.limits[metric]
            found.append(cost / (first + (limit - first) * min(1.0, t / DESCENT)) - 1)
        return torch.stack(found).max()

    def _adam(self, gradient: Tensor) -> None:
        v, mean, square, steps = (self._buffer(name) for name in ("values", "mean", "square", "steps"))
        steps += 1
        done = float(steps)
        mean.lerp_(gradient.to(mean), 1 - BETAS[0])
        square.lerp_(gradient.square().to(square), 1 - BETAS[1])
        root = (square / (1 - BETAS[1] ** done)).sqrt() + EPS
        v -= self.gate.rate / (1 - BETAS[0] ** done) * mean / root


def _scale_of_loss() -> float:
    """What a `GradScaler` that steps the optimiser has multiplied the loss by."""
    for frame in frames_above(sys._getframe(1)):
        if frame.f_code.co_name in ("_maybe_opt_step", "step"):
            held = frame.f_locals.get("self")
            if isinstance(held, torch.amp.GradScaler):
                return float(held.get_scale())
    return 1.0
