"""Batches that processes make ahead: the same as without them, in their order, and errors in one line."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from espalier.errors import ConfigError, DataError
from espalier.search.config.loading import parse_config
from espalier.search.config.recipes import Recipes
from espalier.search.tasks.classification.data.batches import RandAugment, Wanted, batches, fetched
from espalier.search.tasks.classification.data.images import FolderImages, InMemoryImages, crop_box
from espalier.search.tasks.classification.data.transforms import draw_crops
from espalier.search.tasks.classification.training_loop import Recipe, top1, train
from tests.torchvision_operators import import_torchvision

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, draw = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for number in range(24):
        Image.fromarray(draw.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(root / f"{number:02}.png")
    return root


def images_of(folder: Path, workers: int | None) -> FolderImages:
    labels = torch.arange(24) % 3
    return FolderImages(sorted(folder.glob("*.png")), labels, resize=16, size=16, workers=workers)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def some(images: FolderImages) -> Iterator[Wanted]:
    for start in range(0, len(images), 5):
        indices = torch.arange(start, min(start + 5, len(images)))
        crops = draw_crops(len(indices), (0.2, 1.0), torch.Generator().manual_seed(start))
        yield Wanted(indices, crops if start % 2 else None)


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_make_the_batches_in_order(folder: Path, workers: int) -> None:
    images = images_of(folder, workers)
    state = torch.get_rng_state()
    made = list(batches(images, some(images), CPU))
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(labels) for _, labels in made] == [5, 5, 5, 5, 4]
    for (pixels, labels), wanted in zip(made, some(images), strict=True):
        expected = (
            images.fetch(wanted.indices) if wanted.crops is None else images.fetch(wanted.indices, wanted.crops)
        )
        assert torch.equal(pixels, expected) and torch.equal(labels, images.labels[wanted.indices])
    assert torch.equal(fetched(images, torch.tensor([7, 3])), images.fetch(torch.tensor([7, 3])))
    assert fetched(images, torch.arange(0)).shape == (0, 3, 16, 16)
    assert list(batches(images, iter(()), CPU)) == []


def test_a_training_is_the_same_for_any_number_of_processes(folder: Path) -> None:
    recipe = Recipe(epochs=2, batch_size=5, lr=0.1, pad=2, flip=True, crop=(0.3, 1.0), mixup=0.2)
    ends = []
    for workers in (1, 2):
        model = network()
        train(model, images_of(folder, workers), MEAN, STD, recipe, seed=1)
        ends.append((model.state_dict(), top1(model, images_of(folder, workers), MEAN, STD, 7)))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(tensor, ends[1][0][name]) for name, tensor in ends[0][0].items())


def test_an_image_that_a_process_cannot_decode_is_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "00.png").write_bytes(b"no image")
    images = FolderImages([tmp_path / "00.png"], torch.zeros(1, dtype=torch.int64), resize=16, size=16, workers=1)
    with pytest.raises(DataError, match=r"00.png must be an image that Pillow can decode") as caught:
        fetched(images, torch.arange(1))
    assert "\n" not in str(caught.value)


class Deadly(FolderImages):
    """Kills the process that decodes its last image, as the out-of-memory killer does."""

    parent = os.getpid()

    def fetch(self, indices: Tensor, crops: Tensor | None = None) -> Tensor:
        if 23 in indices and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fetch(indices, crops)


def test_a_process_that_is_killed_is_one_line(folder: Path) -> None:
    images = Deadly(sorted(folder.glob("*.png")), torch.zeros(24, dtype=torch.int64), resize=16, size=16, workers=2)
    with pytest.raises(DataError, match="a process that decodes images has ended"):
        fetched(images, torch.arange(24), 4)
    with pytest.raises(DataError, match="a process that decodes images has ended"):  # while the network computes
        train(network(), images, MEAN, STD, Recipe(epochs=1, batch_size=4, lr=0.1), seed=0, on_step=slowly)


def slowly(step: int, loss: float) -> None:
    time.sleep(0.3)


class Faulty(FolderImages):
    def fetch(self, indices: Tensor, crops: Tensor | None = None) -> Tensor:
        raise RuntimeError("a fault of one's own")


def test_what_a_set_of_ones_own_raises_is_not_taken_for_a_kill(folder: Path) -> None:
    images = Faulty(sorted(folder.glob("*.png")), torch.zeros(24, dtype=torch.int64), resize=16, size=16, workers=1)
    with pytest.raises(RuntimeError, match="a fault of one's own"):
        fetched(images, torch.arange(4))


def test_crops_have_the_share_the_aspect_and_the_place_that_were_drawn() -> None:
    assert crop_box(40, 10, (0.25, 1.0, 0.5, 1.0)) == (15.0, 0.0, 10.0, 10.0)
    assert crop_box(40, 40, (0.25, 4.0, 1.0, 0.5)) == (0.0, 15.0, 40.0, 10.0)
    drawn = draw_crops(4000, (0.2, 0.6), torch.Generator().manual_seed(0))
    areas, aspects, across, down = drawn.T
    assert 0.2 <= areas.min() and areas.max() <= 0.6 and abs(float(areas.mean()) - 0.4) < 0.01
    assert 0.75 <= aspects.min() and aspects.max() <= 4 / 3 and abs(float(aspects.log().mean())) < 0.01
    assert 0 <= min(across.min(), down.min()) and max(across.max(), down.max()) <= 1


def test_a_crop_is_scaled_to_the_image(folder: Path) -> None:
    """From a file the part itself is scaled, from memory the pixels that there are."""
    rising = torch.arange(16, dtype=torch.uint8).expand(1, 3, 16, 16) * 10
    held = InMemoryImages(rising, torch.zeros(1, dtype=torch.int64))
    right = held.fetch(torch.tensor([0]), torch.tensor([[0.25, 1.0, 1.0, 0.0]]))  # the columns from 8 up
    assert right.shape == (1, 3, 16, 16) and right.min() == 80 and right.max() == 150
    assert torch.equal(held.images, rising)
    path = sorted(folder.glob("*.png"))[3]
    with Image.open(path) as image:
        expected = image.resize((16, 16), Image.Resampling.BILINEAR, (10, 0, 30, 20))
    found = images_of(folder, 1).fetch(torch.tensor([3]), torch.tensor([[20 * 20 / 600, 1.0, 1.0, 0.0]]))
    apart = (found[0].permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)).__abs__()
    assert apart.max() <= 1  # the square root of what was drawn


@pytest.mark.extras
def test_rand_augment_is_the_same_for_any_number_of_processes(folder: Path) -> None:
    import_torchvision()
    wanted = [Wanted(torch.arange(6), None, RandAugment(2, 9), seed) for seed in (0, 1, 0)]
    alone = [pixels for pixels, _ in batches(images_of(folder, 1), wanted, CPU)]
    both = [pixels for pixels, _ in batches(images_of(folder, 2), wanted, CPU)]
    assert all(torch.equal(one, other) for one, other in zip(alone, both, strict=True))
    assert torch.equal(alone[0], alone[2]) and not torch.equal(alone[0], alone[1])
    assert not torch.equal(alone[0], images_of(folder, 1).fetch(torch.arange(6)))


def test_rand_augment_without_torchvision_is_refused_when_the_config_is_read(
    tiny: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    config = parse_config(tiny, "tiny", ["data.augment.rand_augment=[2, 9]"])
    with pytest.raises(
        ConfigError, match=r"data.augment.rand_augment needs torchvision, .*pip install torchvision"
    ):
        Recipes.of(config)


def test_crops_that_fall_are_refused(tiny: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"data.augment.crop: crop is the least and the greatest share"):
        parse_config(tiny, "tiny", ["data.augment.crop=[0.9, 0.2]"])
