"""The 1,797 handwritten digits, 8 x 8 pixels, that come with scikit-learn: a data set for trying things out.

E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, doi:10.24432/C50P49; the copy
in scikit-learn is its test part. It has no published split, so a fixed fifth of each class is the test split.
"""

from __future__ import annotations

from pathlib import Path

import torch

from espalier.search.tasks.classification.data.images import InMemoryImages, RawData
from espalier.search.tasks.classification.data.splits import stratified_split

_TEST_IMAGES = 359  # of 1,797: 20 %
_TEST_SEED = 0  # a constant, so that no seed of a user moves an image in or out of the test split

# python -c "from espalier.search.tasks.classification.data import channel_statistics, digits; \
#            print(channel_statistics(digits.load_digits().train))"
_MEAN = (0.3053,)
_STD = (0.3758,)


def load_digits(root: str | Path | None = None) -> RawData:
    """Reads scikit-learn's digits: 1,438 training and 359 test images, ``uint8`` ``(n, 1, 8, 8)``.

    Their values 0..16 are scaled to 0..255.

    Args:
        root: not used, as the images come with scikit-learn.
    """
    from sklearn.datasets import load_digits as read_digits

    values, labels = read_digits(return_X_y=True)
    pixels = (torch.from_numpy(values).to(torch.int64) * 255 + 8) // 16  # rounded in whole numbers
    images = InMemoryImages(pixels.to(torch.uint8).view(-1, 1, 8, 8), torch.from_numpy(labels))
    train, test = stratified_split(images.labels, _TEST_IMAGES, _TEST_SEED)
    return RawData(
        train=images.take(train), test=images.take(test), classes=tuple("0123456789"), mean=_MEAN, std=_STD
    )
