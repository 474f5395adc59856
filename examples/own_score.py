"""Regression of tabular data by a score and a training loop of one's own.

    python examples/own_score.py

An MLP predicts the progress of diabetes (scikit-learn's data, 442 patients). The search keeps half of its
multiply-adds. R2 on the test patients stays within 0.08 of the dense network's.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score
from torch import nn

import espalier

WIDTH, TRIALS, EPOCHS = 64, 40, 20

torch.manual_seed(0)
inputs, targets = (torch.tensor(array, dtype=torch.float32) for array in load_diabetes(return_X_y=True))
inputs, targets = inputs / inputs.std(0), (targets - targets.mean()) / targets.std()
training, held_out, test = torch.randperm(len(inputs)).split([222, 110, 110])


def train(network, *, epochs, seed):
    """AdamW on squared error, in batches of 32."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(int(epochs)):
        for rows in training[torch.randperm(len(training))].split(32):
            optimizer.zero_grad()
            F.mse_loss(network(inputs[rows])[:, 0], targets[rows]).backward()
            optimizer.step()


def r2(network, rows=held_out):
    """How much of the variance is explained, at most 1."""
    return r2_score(targets[rows], network(inputs[rows])[:, 0])


def r2_on_test(network):
    """On patients that nothing is chosen by."""
    return r2(network, test)


network = nn.Sequential(
    nn.Linear(10, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.2), nn.Linear(WIDTH, 1)
)
train(network, epochs=EPOCHS, seed=0)
found = espalier.search_widths(
    network,
    inputs[:1],
    espalier.FunctionTask(r2, train=train, test=r2_on_test, metric="R2"),
    budget=espalier.Budget(macs=0.5),
    trials=TRIALS,
    epochs=EPOCHS,
    workers=0,  # searches in this process; by default two on Ray
    study="own_score",
)
print(found.network)
print(f"R2 {found.result.dense.after:.3f} dense, {found.result.searched.after:.3f} at half the MACs")
