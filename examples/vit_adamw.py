"""A vision transformer in a training loop of one's own: AdamW, a warm-up, label smoothing, clipped gradients.

    python examples/vit_adamw.py

It reads the handwritten digits of scikit-learn in patches of 2 x 2 pixels. The search keeps half of its
multiply-adds, in the MLPs, the heads and the embedding. Accuracy on test images stays within 2 points of the
dense network's.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import espalier

DIM, DEPTH, HEADS, TRIALS, EPOCHS = 32, 2, 4, 20, 4

torch.manual_seed(0)
data = load_digits()
images, labels = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
training, held_out, test = torch.randperm(len(images)).split([1197, 300, 300])


class Block(nn.Module):
    """Attention, then an MLP, each behind a LayerNorm and added to what came in."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.qkv, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.up, self.down = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

    def forward(self, x):
        """Tokens, (batch, tokens, dim)."""
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        q, k, v = (each.unflatten(-1, (HEADS, -1)).transpose(1, 2) for each in (q, k, v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Patches, positions, blocks, and a head on the mean token."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, DIM, 2, stride=2)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 16, DIM))
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, 10)

    def forward(self, x):
        """Images, (batch, 1, 8, 8)."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))


def train(network, *, epochs, seed):
    """AdamW without decay of norms and biases, over a cosine with a warm-up."""
    network.train()
    groups = [
        {"params": [each for each in network.parameters() if each.dim() > 1], "weight_decay": 0.05},
        {"params": [each for each in network.parameters() if each.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    steps = int(epochs) * -(-len(training) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.2)
    for _ in range(int(epochs)):
        for rows in training[torch.randperm(len(training))].split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(images[rows]), labels[rows], label_smoothing=0.1).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def right(network, rows=held_out):
    """Of every image, 100 where it is recognised: the score is their mean, in percent."""
    return 100.0 * (network(images[rows]).argmax(1) == labels[rows])


def right_on_test(network):
    """On images that nothing is chosen by."""
    return right(network, test)


network = ViT()
train(network, epochs=4 * EPOCHS, seed=0)
task = espalier.FunctionTask(
    right, list(images[training].split(64)), train, test=right_on_test, metric="accuracy", unit="%"
)
found = espalier.search_widths(
    network,
    images[:1],
    task,
    budget=espalier.Budget(macs=0.5),
    trials=TRIALS,
    epochs=EPOCHS,
    strengths=[0.0, 1e-3],
    workers=0,
    study="vit_adamw",
)
print(found.network)
print(f"accuracy {found.result.dense.after:.2f} % dense, {found.result.searched.after:.2f} at half the MACs")
