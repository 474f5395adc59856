"""Ways to choose widths under a budget: rankings, FastNAS, and searches; what `espalier compare` compares."""

from espalier.search.methods.method import ENERGY, Choice, Material, Method
from espalier.search.methods.method_table import (
    CONTROLS,
    DENSE,
    METHODS,
    SCRATCH,
    choose,
    method_named,
    methods_named,
)

__all__ = [
    "CONTROLS",
    "DENSE",
    "ENERGY",
    "METHODS",
    "SCRATCH",
    "Choice",
    "Material",
    "Method",
    "choose",
    "method_named",
    "methods_named",
]
