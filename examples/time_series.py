"""Forecasts of time series: 1-d convolutions, a GRU, and two heads.

    python examples/time_series.py

The series are drawn: sums of two sines with a drift and noise. From 48 values the network forecasts the next 8.
The search keeps half of its multiply-adds, in the convolutions and the GRU. The mean absolute error on test
series stays within 0.02 of the dense network's, of series with a standard deviation of about 1.
"""

import torch
import torch.nn.functional as F
from torch import nn

import espalier

SERIES, PAST, FUTURE, WIDTH, TRIALS, EPOCHS = 1536, 48, 8, 32, 20, 3

torch.manual_seed(0)
times = torch.arange(PAST + FUTURE) / 8
phases, rates, sizes = 6.28 * torch.rand(SERIES, 2, 1), 0.5 + torch.rand(SERIES, 2, 1), torch.rand(SERIES, 2, 1)
series = (sizes * torch.sin(rates * times + phases)).sum(1) + 0.1 * torch.randn(SERIES, 1) * times
series = series + 0.05 * torch.randn_like(series)
past, future = series[:, None, :PAST], series[:, PAST:]
training, held_out, test = torch.arange(SERIES).split([SERIES - 512, 256, 256])


class Forecaster(nn.Module):
    """Convolutions see what is near, the GRU what came before."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv1d(1, WIDTH, 5, padding=2),
            nn.BatchNorm1d(WIDTH),
            nn.ReLU(),
            nn.Conv1d(WIDTH, WIDTH, 5, stride=2, padding=2),
            nn.BatchNorm1d(WIDTH),
            nn.ReLU(),
        )
        self.gru = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, FUTURE)

    def forward(self, x):
        """Past values, (batch, 1, PAST)."""
        _, last = self.gru(self.convolutions(x).transpose(1, 2))
        return self.head(last[-1])


def train(network, *, epochs, seed):
    """Adam on the Huber loss."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    for _ in range(int(epochs)):
        for rows in training[torch.randperm(len(training))].split(32):
            optimizer.zero_grad()
            F.smooth_l1_loss(network(past[rows]), future[rows]).backward()
            optimizer.step()


def error(network, rows=held_out):
    """Mean absolute error of every series."""
    return (network(past[rows]) - future[rows]).abs().mean(1)


def error_on_test(network):
    """On series that nothing is chosen by."""
    return error(network, test)


network = Forecaster()
train(network, epochs=6 * EPOCHS, seed=0)
found = espalier.search_widths(
    network,
    past[:1],
    espalier.FunctionTask(
        error,
        list(past[training].split(64)),
        train,
        test=error_on_test,
        metric="error",
        greater_is_better=False,
    ),
    budget=espalier.Budget(macs=0.5),
    trials=TRIALS,
    epochs=EPOCHS,
    strengths=[0.0, 1e-3],
    workers=0,
    study="time_series",
)
print(found.network)
print(f"error {found.result.dense.after:.4f} dense, {found.result.searched.after:.4f} at half the MACs")
