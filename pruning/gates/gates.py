"""Gates: a number per channel that multiplies what the channel carries, and how it is learned.

Notation:
    z          (n_channels,) gates: 0 is the channel removed, 1 the channel as it is
    v          (k, n_channels) what is learned, k numbers a channel
    u          (n_channels,) uniform noise in (0, 1), new in every pass
    t          progress of the training, from 0 to 1
    p          (n_channels,) probability that a channel is open, or what a distribution has in its place

    hard_concrete                s = sigmoid((log u - log(1 - u) + v) / b),  z = clamp(s (r - l) + l, 0, 1)
                                 p = sigmoid(v - b log(-l / r));  b = 2/3, l = -0.1, r = 1.1
    continuous_sparsification    z = p = sigmoid(B(t) v),  B(t) = 200^t;  settled: v > 0
    straight_through             z = [u < p],  p = sigmoid(v),  dz/dp = 1;  settled: p > 1/2
    variational_dropout          log z ~ N(mu, sigma^2) on [-20, 0],  p = SNR^2 / (1 + SNR^2),  SNR = E z / std z
    bottleneck                   z = p = sigmoid(v), weights frozen

`gated` puts them into a network and trains them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from espalier.pruning.paper import Paper


class Gate(ABC):
    """A distribution of gates; holds no numbers of its own.

    Attributes:
        paper: where it is from.
        freezes: whether the network's weights, norms and dropout stand still while gates are learned.
        steps: the most that a method trains it for; None for as long as one rung of the ladder.
        rate: learning rate of v, by Adam.
    """

    paper: ClassVar[Paper | None] = None
    freezes: ClassVar[bool] = False
    steps: ClassVar[int | None] = None
    rate: ClassVar[float] = 0.1

    @abstractmethod
    def start(self, channels: int) -> Tensor:
        """V as training begins, float32 (k, channels): gates that are nearly 1."""

    @abstractmethod
    def sample(self, v: Tensor, u: Tensor, t: float) -> Tensor:
        """Z of a pass in training, differentiable in v."""

    @abstractmethod
    def settled(self, v: Tensor) -> Tensor:
        """Z without noise: of passes in eval mode, and of the network that is left."""

    @abstractmethod
    def opening(self, v: Tensor, t: float) -> Tensor:
        """p, differentiable in v: widths are expected by it, and channels are ranked by it."""

    def term(self, v: Tensor) -> Tensor:
        """What is added to the loss beside the budget, a scalar."""
        return v.new_zeros(())


class HardConcrete(Gate):
    """Hard concrete: a stretched and clamped binary concrete, so that gates of exactly 0 and 1 have a gradient."""

    paper = Paper("Louizos et al.", "ICLR 2018", "arXiv 1712.01312")
    TEMPERATURE, LOW, HIGH = 2 / 3, -0.1, 1.1

    def start(self, channels: int) -> Tensor:
        """P(z > 0) = 0.98."""
        return torch.full((1, channels), 2.5)

    def sample(self, v: Tensor, u: Tensor, t: float) -> Tensor:
        """By the inverse distribution function of the concrete."""
        return self._stretched(torch.sigmoid((u.log() - (-u).log1p() + v[0]) / self.TEMPERATURE))

    def settled(self, v: Tensor) -> Tensor:
        """As the paper's equation 13."""
        return self._stretched(torch.sigmoid(v[0]))

    def opening(self, v: Tensor, t: float) -> Tensor:
        """P(z > 0)."""
        return torch.sigmoid(v[0] - self.TEMPERATURE * math.log(-self.LOW / self.HIGH))

    def _stretched(self, s: Tensor) -> Tensor:
        return (s * (self.HIGH - self.LOW) + self.LOW).clamp(0, 1)


class ContinuousSparsification(Gate):
    """Continuous sparsification: sigmoids that grow steeper until they are steps; nothing is drawn."""

    paper = Paper("Savarese et al.", "NeurIPS 2020", "arXiv 1912.04427")
    STEEPEST = 200.0

    def start(self, channels: int) -> Tensor:
        """Sigmoid of 3."""
        return torch.full((1, channels), 3.0)

    def sample(self, v: Tensor, u: Tensor, t: float) -> Tensor:
        """Sigmoid, as steep as it is by now."""
        return self.opening(v, t)

    def settled(self, v: Tensor) -> Tensor:
        """The step."""
        return (v[0] > 0).to(v)

    def opening(self, v: Tensor, t: float) -> Tensor:
        """Sigmoid, as steep as it is by now."""
        return torch.sigmoid(self.STEEPEST**t * v[0])


class StraightThrough(Gate):
    """Bernoulli gates, whose gradient goes straight through to their probabilities."""

    paper = Paper("Srinivas et al.", "CVPR Workshops 2017", "arXiv 1611.06694")

    def start(self, channels: int) -> Tensor:
        """Open with a probability of 0.95."""
        return torch.full((1, channels), 3.0)

    def sample(self, v: Tensor, u: Tensor, t: float) -> Tensor:
        """0 or 1, with the gradient of the probability."""
        p = self.opening(v, t)
        return (u < p).to(p) + p - p.detach()

    def settled(self, v: Tensor) -> Tensor:
        """The likelier of 0 and 1."""
        return (v[0] > 0).to(v)

    def opening(self, v: Tensor, t: float) -> Tensor:
        """The probability."""
        return torch.sigmoid(v[0])


class VariationalDropout(Gate):
    """Structured Bayesian pruning: log-normal noise on channels; those with more noise than signal go.

    The paper weighs the divergence from its log-uniform prior by one over the number of examples, and lets that
    decide how many channels go. Here the budget does, and the divergence has a fixed small weight.
    """

    paper = Paper("Neklyudov et al.", "NeurIPS 2017", "arXiv 1705.07283")
    LOWEST, WEIGHT = -20.0, 1e-3

    def start(self, channels: int) -> Tensor:
        """Mean about 0.9, standard deviation about 0.07."""
        return torch.tensor([[-3.0], [-2.5]]).expand(2, channels).clone()

    def sample(self, v: Tensor, u: Tensor, t: float) -> Tensor:
        """By the inverse distribution function of the truncated log-normal."""
        mu, sigma, low, mass = self._moments(v)
        drawn: Tensor = torch.special.ndtri((low + u * mass).clamp(1e-12, 1 - 1e-12))
        return (mu + sigma * drawn).exp().to(v)

    def settled(self, v: Tensor) -> Tensor:
        """The mean."""
        return self._raw_moment(v, 1).to(v)

    def opening(self, v: Tensor, t: float) -> Tensor:
        """SNR^2 / (1 + SNR^2) = (E z)^2 / E z^2: 1/2 where signal and noise are alike."""
        return (self._raw_moment(v, 1).square() / self._raw_moment(v, 2)).to(v)

    def term(self, v: Tensor) -> Tensor:
        """The divergence from the log-uniform prior (equation 9), mean over channels."""
        mu, sigma, _, mass = self._moments(v)
        a, b = (self.LOWEST - mu) / sigma, -mu / sigma
        edges = a * _density(a) - b * _density(b)
        divergence = math.log(-self.LOWEST) - (2 * math.pi * math.e * sigma.square()).log() / 2 - mass.log()
        return self.WEIGHT * (divergence - edges / (2 * mass)).mean().to(v)

    def _moments(self, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mu, sigma, the normal distribution function at the lower end, and its mass between the ends."""
        mu, sigma = -torch.nn.functional.softplus(v[0].double()), v[1].double().clamp(-7, 1.6).exp()
        low = _below((self.LOWEST - mu) / sigma)
        return mu, sigma, low, _below(-mu / sigma) - low

    def _raw_moment(self, v: Tensor, order: int) -> Tensor:
        mu, sigma, _, mass = self._moments(v)
        ends = -mu / sigma, (self.LOWEST - mu) / sigma
        high, low = (_below(end - order * sigma) for end in ends)
        found: Tensor = (order * mu + (order * sigma).square() / 2).exp() * (high - low) / mass
        return found


class Bottleneck(Gate):
    """AutoBot: bottlenecks that throttle the channels of a network whose weights are frozen.

    As in the authors' code: signals are scaled, without noise, gates are drawn to 0 or 1, and 200 steps are enough.
    """

    paper = Paper("Castells and Yeom", "2021", "arXiv 2111.09635")
    freezes, steps, rate = True, 200, 0.3
    WEIGHT = 0.5

    def start(self, channels: int) -> Tensor:
        """Sigmoid of 3."""
        return torch.full((1, channels), 3.0)

    def sample(self, v: Tensor, u: Tensor, t: float) -> Tensor:
        """Without noise."""
        return torch.sigmoid(v[0])

    def settled(self, v: Tensor) -> Tensor:
        """What is open passes whole: the weights are those of the network without gates."""
        return torch.ones_like(v[0])

    def opening(self, v: Tensor, t: float) -> Tensor:
        """The gate itself."""
        return torch.sigmoid(v[0])

    def term(self, v: Tensor) -> Tensor:
        """Distance from 0 or 1, mean over channels."""
        z = torch.sigmoid(v[0])
        return self.WEIGHT * torch.minimum(z, 1 - z).mean()


def _below(x: Tensor) -> Tensor:
    """Distribution function of the standard normal; `torch.special.ndtr` is zero from -8.3 on."""
    found: Tensor = torch.special.log_ndtr(x).exp()
    return found


def _density(x: Tensor) -> Tensor:
    """Of the standard normal distribution."""
    return (-x.square() / 2).exp() / math.sqrt(2 * math.pi)


GATES: dict[str, type[Gate]] = {
    "hard_concrete": HardConcrete,
    "continuous_sparsification": ContinuousSparsification,
    "straight_through": StraightThrough,
    "variational_dropout": VariationalDropout,
    "bottleneck": Bottleneck,
}
"""Name in a config -> class."""
