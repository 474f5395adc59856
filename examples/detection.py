"""Object detection by a small anchor-free detector, scored by mean average precision.

    python examples/detection.py

The images are drawn: two to four boxes, filled or hollow, in noise. Each cell of a map of stride 4 says whether an
object of a class has its centre there, and how far its four sides are (as CenterNet, arXiv 1904.07850). The search
keeps half of its multiply-adds. mAP at an IoU of 0.5 on test images stays within 5 points of the dense network's.
"""

import torch
import torch.nn.functional as F
from torch import nn

import espalier

IMAGES, SIZE, STRIDE, CLASSES, WIDTH, TRIALS, EPOCHS = 704, 32, 4, 2, 24, 20, 3
CELLS = SIZE // STRIDE

torch.manual_seed(0)


def draw():
    """An image (1, SIZE, SIZE), and its objects: (class, left, top, right, bottom)."""
    image, objects = 0.2 * torch.randn(1, SIZE, SIZE), []
    for _ in range(int(torch.randint(2, 5, ()))):
        width, height = torch.randint(6, 13, (2,)).tolist()
        left, top = int(torch.randint(SIZE - width, ())), int(torch.randint(SIZE - height, ()))
        box, hollow = (left, top, left + width, top + height), int(torch.randint(CLASSES, ()))
        if all(iou(torch.tensor(box), torch.tensor(other[1:])) < 0.05 for other in objects):
            image[0, top : top + height, left : left + width] += 1
            if hollow:
                image[0, top + 2 : top + height - 2, left + 2 : left + width - 2] -= 1
            objects.append((hollow, *box))
    return image, torch.tensor(objects)


def iou(one, other):
    """Of boxes (..., 4): left, top, right, bottom."""
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    common = (high - low).clamp(min=0).prod(-1)
    return common / ((one[..., 2:] - one[..., :2]).prod(-1) + (other[..., 2:] - other[..., :2]).prod(-1) - common)


drawn = [draw() for _ in range(IMAGES)]
images, objects = torch.stack([image for image, _ in drawn]), [there for _, there in drawn]
training, held_out, test = torch.arange(IMAGES).split([IMAGES - 256, 128, 128])
centres = (torch.stack(torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="xy")) + 0.5) * STRIDE

heat, sides = torch.zeros(IMAGES, CLASSES, CELLS, CELLS), torch.zeros(IMAGES, 4, CELLS, CELLS)
for number, there in enumerate(objects):
    for kind, *box in there.tolist():
        column, row = (box[0] + box[2]) // (2 * STRIDE), (box[1] + box[3]) // (2 * STRIDE)
        heat[number, kind, row, column] = 1
        x, y = centres[:, row, column]
        sides[number, :, row, column] = torch.stack([x - box[0], y - box[1], box[2] - x, box[3] - y]) / STRIDE


def layer(inputs, outputs, stride=1):
    """Convolution, batch norm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class Detector(nn.Module):
    """A trunk of stride 4, and two heads."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(layer(1, WIDTH, 2), layer(WIDTH, 2 * WIDTH, 2), layer(2 * WIDTH, 2 * WIDTH))
        self.heat = nn.Sequential(layer(2 * WIDTH, WIDTH), nn.Conv2d(WIDTH, CLASSES, 1))
        self.sides = nn.Sequential(layer(2 * WIDTH, WIDTH), nn.Conv2d(WIDTH, 4, 1))

    def forward(self, x):
        """Logits (batch, CLASSES, CELLS, CELLS) and distances in cells (batch, 4, CELLS, CELLS)."""
        seen = self.trunk(x)
        return self.heat(seen), F.softplus(self.sides(seen))


def train(network, *, epochs, seed):
    """AdamW on the focal loss of centres and the L1 loss of the sides there."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=5e-3, total_steps=int(epochs) * -(-len(training) // 32)
    )
    for _ in range(int(epochs)):
        for rows in training[torch.randperm(len(training))].split(32):
            optimizer.zero_grad()
            logits, distances = network(images[rows])
            entropy = F.binary_cross_entropy_with_logits(logits, heat[rows], reduction="none")
            focal = ((1 - torch.exp(-entropy)) ** 2 * entropy).sum()
            there = heat[rows].amax(1, keepdim=True)
            (focal + (there * (distances - sides[rows]).abs()).sum()).div(there.sum()).backward()
            optimizer.step()
            schedule.step()


def mean_ap(network, rows=held_out):
    """Area under precision over recall of each class, at an IoU of 0.5, mean over classes, in percent."""
    logits, distances = network(images[rows])
    peaks = torch.where(F.max_pool2d(logits, 3, 1, 1) == logits, logits, -torch.inf)
    boxes = torch.cat([centres - STRIDE * distances[:, :2], centres + STRIDE * distances[:, 2:]], 1)
    each = []
    for kind in range(CLASSES):
        best = peaks[:, kind].flatten().topk(5 * len(rows))
        wanted = [objects[row][objects[row][:, 0] == kind][:, 1:] for row in rows]
        taken, hits = [set() for _ in rows], []
        for place in best.indices.tolist():
            image, cell = divmod(place, CELLS * CELLS)
            box = boxes[image].flatten(1)[:, cell]
            near = iou(box, wanted[image]) if len(wanted[image]) else torch.zeros(1)
            hits.append(bool(near.max() >= 0.5) and int(near.argmax()) not in taken[image])
            if hits[-1]:
                taken[image].add(int(near.argmax()))
        right = torch.tensor(hits).cumsum(0)
        precision = (right / torch.arange(1, len(hits) + 1)).flip(0).cummax(0).values.flip(0)
        each.append(float(precision[torch.tensor(hits)].sum()) / sum(map(len, wanted)))
    return 100 * sum(each) / CLASSES


def mean_ap_on_test(network):
    """On images that nothing is chosen by."""
    return mean_ap(network, test)


network = Detector()
train(network, epochs=6 * EPOCHS, seed=0)
found = espalier.search_widths(
    network,
    images[:1],
    espalier.FunctionTask(
        mean_ap, list(images[training].split(64)), train, test=mean_ap_on_test, metric="mAP", unit="%"
    ),
    budget=espalier.Budget(macs=0.5),
    trials=TRIALS,
    epochs=EPOCHS,
    strengths=[0.0, 1e-3],
    workers=0,
    study="detection",
)
print(found.network)
print(f"mAP {found.result.dense.after:.2f} % dense, {found.result.searched.after:.2f} at half the MACs")
