"""A LightningModule and a LightningDataModule, as they are.

    python examples/lightning_module.py        # needs pip install 'espalier[lightning]'

A small convolutional network reads the handwritten digits of scikit-learn. The search keeps half of its
multiply-adds. Accuracy on test images stays within 2 points of the dense network's.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

import espalier

try:
    import lightning
except ImportError:
    print("lightning is not installed: pip install 'espalier[lightning]'")
    raise SystemExit from None

WIDTH, TRIALS, EPOCHS = 16, 12, 2


class Digits(lightning.LightningDataModule):
    """Training, validation and test images."""

    def setup(self, stage):
        """Splits them, always alike."""
        data = load_digits()
        images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
        whole = TensorDataset(images, torch.tensor(data.target))
        self.parts = random_split(whole, [1197, 300, 300], torch.Generator().manual_seed(0))

    def train_dataloader(self):
        """Shuffled."""
        return DataLoader(self.parts[0], batch_size=64, shuffle=True)

    def val_dataloader(self):
        """That candidates are scored on."""
        return DataLoader(self.parts[1], batch_size=300)

    def test_dataloader(self):
        """That nothing is chosen by."""
        return DataLoader(self.parts[2], batch_size=300)


class Classifier(lightning.LightningModule):
    """A network, its loss and its optimiser."""

    def __init__(self):
        super().__init__()
        layers, channels = [], 1
        for width, stride in [(WIDTH, 1), (2 * WIDTH, 2), (4 * WIDTH, 2)]:
            layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))

    def training_step(self, batch, _):
        """Cross-entropy."""
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch, _):
        """Percent of images that are recognised."""
        self.log("val_accuracy", 100 * (self.model(batch[0]).argmax(1) == batch[1]).float().mean())

    def test_step(self, batch, _):
        """The same on test images."""
        self.log("test_accuracy", 100 * (self.model(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        """AdamW over one cycle of the learning rate."""
        optimizer = torch.optim.AdamW(self.parameters())
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


lightning.seed_everything(0)
module, data = Classifier(), Digits()
network = module.model
lightning.Trainer(
    max_epochs=4 * EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False, gradient_clip_val=1.0
).fit(module, datamodule=data)
found = espalier.search_widths(
    network,
    torch.zeros(1, 1, 8, 8),
    espalier.LightningTask(
        module,
        data,
        part="model",
        metric="val_accuracy",
        greater_is_better=True,
        unit="%",
        trainer_kwargs={"gradient_clip_val": 1.0},
    ),
    budget=espalier.Budget(macs=0.5),
    trials=TRIALS,
    epochs=EPOCHS,
    strengths=[0.0, 1e-3],
    workers=0,
    study="lightning_module",
)
print(found.network)
print(f"accuracy {found.result.dense.after:.2f} % dense, {found.result.searched.after:.2f} at half the MACs")
