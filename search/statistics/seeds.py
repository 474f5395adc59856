"""Which seeds choose, and which are compared."""

from __future__ import annotations

SELECTION = 1000
"""Seeds of fine-tunings that choose something begin so far above those of the final comparison."""


def selection_seeds(seed: int, count: int = 1) -> list[int]:
    """Seeds of the fine-tunings by which strengths, the greedy baseline and finalists are chosen.

    Whoever is chosen by a seed looks better with it than with others. So the networks that are compared on the test
    split are fine-tuned with seeds that chose nothing: `seed` and those that follow it. What is chosen with one
    `seed` shares none with what is chosen with the next one: choices of several are independent.
    """
    return [SELECTION + seed * count + number for number in range(count)]
