"""The runtimes, by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Final

from espalier.errors import ConfigError
from espalier.pruning.runtimes.eager import Compiled, Eager
from espalier.pruning.runtimes.onnx_runtime import OnnxRuntime
from espalier.pruning.runtimes.openvino_runtime import OpenVino
from espalier.pruning.runtimes.runtime import Runtime
from espalier.pruning.runtimes.tensorrt_runtime import TensorRt

RUNTIMES: Final[Mapping[str, type[Runtime]]] = {
    kind.name: kind for kind in (Eager, Compiled, OnnxRuntime, OpenVino, TensorRt)
}


def runtime_named(name: str) -> Runtime:
    """A runtime.

    Raises:
        ConfigError: there is none of that name.
        MissingPackage: it is not installed; names the extra.
    """
    if name not in RUNTIMES:
        near = difflib.get_close_matches(str(name), RUNTIMES, n=1)
        said = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(RUNTIMES)}"
        raise ConfigError(f"unknown runtime {name!r}, {said}")
    RUNTIMES[name].check()
    return RUNTIMES[name]()
