"""Semantic segmentation by a small U-Net, scored by mean IoU.

    python examples/segmentation.py

The images are drawn: a disc and a square, one over the other, in noise. The search keeps half of the
multiply-adds. Mean IoU on test images stays within 4 points of the dense network's.
"""

import torch
import torch.nn.functional as F
from torch import nn

import espalier

IMAGES, SIZE, WIDTH, TRIALS, EPOCHS = 512, 24, 8, 20, 3

torch.manual_seed(0)


def draw(count):
    """Images (count, 1, SIZE, SIZE), and classes (count, SIZE, SIZE): ground, disc, square."""
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    centers, radii = 4 + (SIZE - 8) * torch.rand(2, count, 2, 1, 1), 3 + 3 * torch.rand(2, count, 1, 1)
    across, down = (x - centers[:, :, 0]).abs(), (y - centers[:, :, 1]).abs()
    classes = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    classes[across[0] ** 2 + down[0] ** 2 < radii[0] ** 2] = 1
    classes[torch.maximum(across[1], down[1]) < 0.9 * radii[1]] = 2
    brightness = torch.tensor([0.0, 0.8, 1.0])[classes]
    return (brightness + 0.4 * torch.randn(count, SIZE, SIZE))[:, None], classes


images, classes = draw(IMAGES)
training, held_out, test = torch.arange(IMAGES).split([IMAGES - 256, 128, 128])


def block(inputs, outputs):
    """Two convolutions with batch norms."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class UNet(nn.Module):
    """Three levels; what the way down saw is concatenated on the way up."""

    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.bottom = block(1, WIDTH), block(WIDTH, 2 * WIDTH), block(2 * WIDTH, 4 * WIDTH)
        self.up2, self.up1 = block(6 * WIDTH, 2 * WIDTH), block(3 * WIDTH, WIDTH)
        self.head = nn.Conv2d(WIDTH, 3, 1)

    def forward(self, x):
        """Images, (batch, 1, height, width)."""
        fine = self.down1(x)
        middle = self.down2(F.max_pool2d(fine, 2))
        coarse = self.bottom(F.max_pool2d(middle, 2))
        middle = self.up2(torch.cat([F.interpolate(coarse, scale_factor=2.0), middle], 1))
        return self.head(self.up1(torch.cat([F.interpolate(middle, scale_factor=2.0), fine], 1)))


def train(network, *, epochs, seed):
    """Adam on the cross-entropy of pixels, over one cycle of the learning rate."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters())
    steps = int(epochs) * -(-len(training) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(int(epochs)):
        for rows in training[torch.randperm(len(training))].split(16):
            optimizer.zero_grad()
            F.cross_entropy(network(images[rows]), classes[rows]).backward()
            optimizer.step()
            schedule.step()


def mean_iou(network, rows=held_out):
    """Intersection over union of all pixels of a class, mean over classes, in percent."""
    found, wanted = network(images[rows]).argmax(1), classes[rows]
    each = [((found == c) & (wanted == c)).sum() / ((found == c) | (wanted == c)).sum() for c in range(3)]
    return 100 * float(sum(each)) / 3


def mean_iou_on_test(network):
    """On images that nothing is chosen by."""
    return mean_iou(network, test)


network = UNet()
train(network, epochs=4 * EPOCHS, seed=0)
found = espalier.search_widths(
    network,
    images[:1],
    espalier.FunctionTask(
        mean_iou, list(images[training].split(32)), train, test=mean_iou_on_test, metric="mIoU", unit="%"
    ),
    budget=espalier.Budget(macs=0.5),
    trials=TRIALS,
    epochs=EPOCHS,
    strengths=[0.0, 1e-3],
    workers=0,
    study="segmentation",
)
print(found.network)
print(f"mIoU {found.result.dense.after:.2f} % dense, {found.result.searched.after:.2f} at half the MACs")
