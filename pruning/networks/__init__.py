"""Networks to prune, by name, or any callable of anybody's.

CifarNet, AlexNet, VGG, CIFAR and ImageNet ResNets, PreActSeNet, DenseNets, MobileNets, ShuffleNets, RegNets,
EfficientNet, GhostNet, G-Ghost RegNets and vision transformers.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from torch import nn

from espalier.errors import ConfigError, EspalierError, raised
from espalier.pruning.networks.alexnet import AlexNet
from espalier.pruning.networks.cifar_resnet import CifarResNet, ZeroPadShortcut
from espalier.pruning.networks.cifarnet import CifarNet
from espalier.pruning.networks.densenet import CifarDenseNet, DenseNet
from espalier.pruning.networks.efficientnet import EfficientNet
from espalier.pruning.networks.ghostnet import GhostNet
from espalier.pruning.networks.mobilenet import MobileNetV2
from espalier.pruning.networks.mobilenet_v1 import MobileNetV1
from espalier.pruning.networks.preact_se import PreActSeNet
from espalier.pruning.networks.regnet import RegNet
from espalier.pruning.networks.resnet import ResNet
from espalier.pruning.networks.shufflenet import ShuffleNetV1, ShuffleNetV2
from espalier.pruning.networks.vgg import VGG
from espalier.pruning.networks.vit import VisionTransformer
from espalier.pruning.networks.weights import load_weights

__all__ = [
    "NETWORKS",
    "VGG",
    "AlexNet",
    "CifarDenseNet",
    "CifarNet",
    "CifarResNet",
    "DenseNet",
    "EfficientNet",
    "GhostNet",
    "MobileNetV1",
    "MobileNetV2",
    "PreActSeNet",
    "RegNet",
    "ResNet",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "VisionTransformer",
    "ZeroPadShortcut",
    "build",
    "is_built_in",
    "load_weights",
]

# name -> (class, the arguments that the name stands for)
NETWORKS: Final[Mapping[str, tuple[type[nn.Module], Mapping[str, Any]]]] = {
    "resnet20": (CifarResNet, {"depth": 20}),
    "resnet32": (CifarResNet, {"depth": 32}),
    "resnet44": (CifarResNet, {"depth": 44}),
    "resnet56": (CifarResNet, {"depth": 56}),
    "resnet110": (CifarResNet, {"depth": 110}),
    "resnet18": (ResNet, {"depth": 18}),
    "resnet34": (ResNet, {"depth": 34}),
    "resnet50": (ResNet, {"depth": 50}),
    "resnet101": (ResNet, {"depth": 101}),
    "vgg11_bn": (VGG, {"depth": 11}),
    "vgg13_bn": (VGG, {"depth": 13}),
    "vgg16_bn": (VGG, {"depth": 16}),
    "vgg19_bn": (VGG, {"depth": 19}),
    "cifarnet": (CifarNet, {}),
    "alexnet": (AlexNet, {"batch_norm": False}),
    "alexnet_bn": (AlexNet, {"batch_norm": True}),
    "preact_senet18": (PreActSeNet, {"depth": 18}),
    "densenet40": (CifarDenseNet, {"depth": 40, "bc": False, "blocks": 3}),
    "densenet89": (CifarDenseNet, {"depth": 89, "bc": False, "blocks": 4}),
    "densenet100_bc": (CifarDenseNet, {"depth": 100, "bc": True, "blocks": 3}),
    "densenet121": (DenseNet, {"depth": 121}),
    "mobilenet_v1": (MobileNetV1, {}),
    "mobilenet_v2": (MobileNetV2, {}),
    "shufflenet_v1": (ShuffleNetV1, {}),
    "shufflenet_v2": (ShuffleNetV2, {}),
    "regnet_x_200mf": (RegNet, {"size": "x_200mf"}),
    "regnet_x_400mf": (RegNet, {"size": "x_400mf"}),
    "regnet_y_200mf": (RegNet, {"size": "y_200mf"}),
    "regnet_y_400mf": (RegNet, {"size": "y_400mf"}),
    "g_ghost_regnet_x_200mf": (RegNet, {"size": "x_200mf", "ghost": True}),
    "g_ghost_regnet_x_400mf": (RegNet, {"size": "x_400mf", "ghost": True}),
    "efficientnet_b0": (EfficientNet, {}),
    "ghostnet": (GhostNet, {}),
    "vit_tiny": (VisionTransformer, {"size": "tiny"}),
}


_CLASSES: Final = frozenset(f"{__name__}:{network.__name__}" for network, _ in NETWORKS.values())


def is_built_in(name: str) -> bool:
    """Whether a name is one of the networks above, by its key or as ``espalier.pruning.networks:CLASS``.

    Their arguments are numbers and choices, which are checked: none is a path or a callable.
    """
    return name in NETWORKS or name in _CLASSES


def build(name: str, /, **kwargs: Any) -> nn.Module:
    """Make a network.

    A name with a colon is imported and called. Where it comes from a file or a storage, the user must have named it
    too: `espalier.load` and `espalier resume` see to that.

    Args:
        name: a key of `NETWORKS`, or "package.module:callable" for anything that can be imported and
            returns a network, such as "torchvision.models:resnet18".
        **kwargs: arguments of the class or callable; those that the name stands for cannot be given.

    Returns:
        The network, in training mode, with weights drawn from torch's default generator.

    Raises:
        ConfigError: the name is not known or cannot be imported, an argument is unknown, missing or out of
            range, or what the callable returns is not a network.

    Example:
        >>> network = build("resnet20", num_classes=100)
        >>> network.linear.weight.shape
        torch.Size([100, 64])
    """
    factory: Callable[..., nn.Module]
    fixed: Mapping[str, Any] = {}
    if name in NETWORKS:
        factory, fixed = NETWORKS[name]
    elif ":" in name:
        factory = _imported(name)
    else:
        raise ConfigError(_unknown(name))
    valid = _check_arguments(name, factory, fixed, kwargs)
    try:
        network = factory(**fixed, **kwargs)
    except TypeError as error:
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items()) or "no arguments"
        raise ConfigError(
            f"{name} cannot be built with {given}: {_one_line(error)}; its arguments are {valid}."
        ) from error
    except EspalierError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise ConfigError(f"{name} raised {raised(error)}; correct model.kwargs or the callable") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"{name} must return a torch.nn.Module, got an object of type {type(network).__name__}: name a "
            f"class of networks or a function that returns one."
        )
    return network


def _unknown(name: str) -> str:
    """The message for a name without a colon that is not in the table."""
    near = difflib.get_close_matches(name.lower(), NETWORKS, n=3)
    advice = f"did you mean {' or '.join(near)}?" if near else f"the names are {', '.join(NETWORKS)}."
    module, _, attribute = name.rpartition(".")
    example = f"{module}:{attribute}" if module and attribute else "package.module:callable"
    return (
        f"a network must be a known name or package.module:callable, got {name!r}: {advice} "
        f"For a callable of your own write {example}."
    )


def _imported(name: str) -> Callable[..., nn.Module]:
    """The callable that "package.module:callable" names."""
    module_name, _, attributes = name.partition(":")
    rule = f"a network of your own must read package.module:callable, got {name!r}"
    if not module_name or module_name.startswith(".") or not attributes:
        raise ConfigError(f"{rule}: write the module, a colon and the callable, as in torchvision.models:resnet18.")
    try:
        target: Any = importlib.import_module(module_name)
    # Importing runs somebody's code, which may raise anything; the cause stays chained for --debug.
    except Exception as error:
        raise ConfigError(
            f"{rule}: importing {module_name} failed ({type(error).__name__}: {_one_line(error)}), so check "
            f"its spelling and that it is installed or its folder is on PYTHONPATH."
        ) from error
    for attribute in attributes.split("."):
        if not hasattr(target, attribute):
            near = difflib.get_close_matches(attribute, dir(target), n=3)
            advice = f"did you mean {' or '.join(near)}?" if near else "check its spelling."
            raise ConfigError(f"{rule}: {module_name} has no {attributes}, {advice}")
        target = getattr(target, attribute)
    if isinstance(target, nn.Module) or not callable(target):
        raise ConfigError(
            f"{rule}: it is of type {type(target).__name__} and not a callable that returns a network, so "
            f"name a class of networks or a function that returns one."
        )
    factory: Callable[..., nn.Module] = target
    return factory


def _check_arguments(
    name: str, factory: Callable[..., nn.Module], fixed: Mapping[str, Any], kwargs: Mapping[str, Any]
) -> str:
    """Check the names of arguments before the call, and return the valid ones as text."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # callables written in C may have no signature
        return "not known"
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    free = [p.name for p in by_name if p.name not in fixed]
    valid = ", ".join(free + ["others that it passes on"] * takes_any) or "none"
    faults = []
    for argument in kwargs:
        if argument in fixed:
            faults.append(f"{argument} is {fixed[argument]!r} by the name itself, so drop it")
        elif argument not in free and not takes_any:
            near = difflib.get_close_matches(argument, free, n=1)
            faults.append(f"{argument} is not an argument" + (f" (did you mean {near[0]}?)" if near else ""))
    faults += [
        f"{p.name} is required"
        for p in by_name
        if p.default is p.empty and p.name not in kwargs and p.name not in fixed
    ]
    if faults:
        raise ConfigError(f"{name} cannot be built: {'; '.join(faults)}; its arguments are {valid}.")
    return valid


def _one_line(error: Exception) -> str:
    """An exception's message without line breaks."""
    return " ".join(str(error).split())
