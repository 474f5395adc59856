"""Networks of timm, Transformers and Ultralytics: traced, halved, trained for a step, saved and loaded.

    pip install timm transformers ultralytics torchvision
    python benchmarks/zoo.py                    # goes on from its results file
    python benchmarks/zoo.py --family timm --only resnet
    python benchmarks/zoo.py --page docs/zoo.md # writes the table

Of timm, a small network of every family; of Transformers, one of every family with its config made small;
of Ultralytics, every YAML file. Weights are random. Each network runs in a process of its own.
Nothing is downloaded.

What is tried, on one example:
    trace    the channel graph; least is the share of MACs that is left with one channel in every group
    macs     the graph's MACs are those of PyTorch's FlopCounterMode
    slim     half of the MACs go, greedily by energy (or half of what can go); slim() verifies the result
    train    a step of SGD in training mode, on two examples
    load     saved, and loaded in another process: equal outputs
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import multiprocessing
import os
import re
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from espalier import channel_energies, greedy, load, save, slim, trace

os.environ |= {"HF_HUB_OFFLINE": "1", "YOLO_OFFLINE": "1", "YOLO_VERBOSE": "false"}

RESULTS = Path(__file__).parent / "results" / "zoo.jsonl"
STEPS = ("trace", "macs", "slim", "train", "load")
SECONDS = 300

Built = tuple[nn.Module, Any]
"""A network in eval mode, and inputs of one example."""


# -- timm


VARIANTS = re.compile(r"test_|tv_|gluon_|ssl_|swsl_|ig_|ens_|adv_|tf_|legacy_|dm_|jx_")
"""Prefixes of the same networks with other weights or paddings."""
CHOSEN = RESULTS.with_name("zoo_timm.json")


def timm_names() -> list[str]:
    """A small network of every family, of each module and first word; chosen once, as that takes minutes."""
    if not CHOSEN.exists():
        import timm
        from timm.models import _registry

        families: dict[tuple[str, str], list[str]] = defaultdict(list)
        for name in timm.list_models():
            if not VARIANTS.match(name) and (word := re.match("[a-z]+", name)):
                families[_registry._model_to_module[name], word.group()].append(name)
        chosen = []
        for names in families.values():
            sizes: dict[str, int] = {}
            for name in names:
                with torch.device("meta"), contextlib.suppress(Exception):
                    sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
            chosen.append(min(sizes or names, key=lambda name: sizes.get(name, 0)))
        CHOSEN.write_text(json.dumps(sorted(set(chosen)), indent=0) + "\n")
    names_chosen: list[str] = json.loads(CHOSEN.read_text())
    return names_chosen


def timm_network(name: str) -> Built:
    """With its own size of images."""
    import timm

    model = timm.create_model(name, pretrained=False).eval()
    return model, torch.randn(1, *model.pretrained_cfg.get("test_input_size", model.pretrained_cfg["input_size"]))


# -- Transformers


TASKS = (
    *("IMAGE_CLASSIFICATION", "SEMANTIC_SEGMENTATION", "UNIVERSAL_SEGMENTATION", "OBJECT_DETECTION"),
    *("DEPTH_ESTIMATION", "IMAGE_TO_IMAGE", "VIDEO_CLASSIFICATION", "AUDIO_CLASSIFICATION", "CTC"),
    *("SPEECH_SEQ_2_SEQ", "MASKED_LM", "SEQ_TO_SEQ_CAUSAL_LM", "CAUSAL_LM"),
)
SMALL = (  # what an integer of a config is called, and what it becomes, if it is greater
    ("num_feat_extract_layers", 1000),  # as many as there are kernels and strides in lists
    (r".*(vocab_size|vocab_size_or_config_json_file)", 256),
    (r".*(hidden_layers|num_layers|_layers|n_layers?|num_blocks)|depth", 2),
    (r".*(key_value_heads|kv_heads|num_query_groups)", 2),
    (r".*(heads?|n_heads?)", 4),
    (r".*(head_dim|d_kv|head_size)", 16),
    (r".*(experts_per_tok|top_?k|topk_group|n_group)", 1),
    (r".*(num_|n_).*experts", 4),
    (r".*lora_rank", 16),
    (r"rotary_dim", 8),
    (r".*(intermediate|ffn|inner|mlp_hidden|d_ff|expert_).*(size|dim|d_ff)?|d_ff|n_inner", 128),
    (r"hidden_size|d_model|.*embed_dim|n_embd|dim|.*embedding_size|hidden_dim|emb_dim|.*hidden_dim|lru_width", 64),
    (r".*(max_position_embeddings|n_positions)", 512),
)


def transformers_names() -> list[str]:
    """Model types with a network for one of the tasks; of those that only write text, a quarter."""
    from transformers.models.auto import modeling_auto

    tables = [getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES") for task in TASKS]
    names = {name for table in tables[:-1] for name in table}
    return sorted(names | set(sorted(set(tables[-1]) - names)[::4]))


def transformers_network(name: str) -> Built:
    """Of a small config, for the first of the tasks."""
    import transformers
    from transformers.models.auto import modeling_auto

    tables = [getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES") for task in TASKS]
    found = next(table[name] for table in tables if name in table)
    network = getattr(transformers, found[0] if isinstance(found, tuple) else found)
    config = small(network.config_class)
    model = network(config).eval()
    first: Exception | None = None
    for inputs in transformers_inputs(model):
        try:
            with torch.no_grad():
                run(model, inputs)
            return model, inputs
        except Exception as error:
            first = first or error
    raise first or TypeError("there are no inputs for it")


def small(kind: Any) -> Any:
    """The config of a family with smaller numbers."""
    default = kind()
    config = kind(**smaller(default))
    for each in (config, *(getattr(config, name) for name in getattr(config, "sub_configs", {}))):
        if each is not None:
            each.use_cache = False
    return config


def smaller(default: Any) -> dict[str, Any]:
    """The arguments of a config that are to be smaller."""
    found: dict[str, Any] = {}
    for name, value in default.to_dict().items():
        held = getattr(default, name, None)
        if held is not None and hasattr(held, "to_dict"):
            found[name] = {"model_type": held.model_type, **smaller(held)}
        elif name == "depths" and isinstance(value, list):
            found[name] = [1] * len(value)
        elif type(value) is int and name.endswith("token_id") and value >= 256:
            found[name] = 3
        elif name == "num_key_value_heads" and value == getattr(default, "num_attention_heads", 0):
            found[name] = min(value, 4)
        elif name == "backbone_config" and value is None:
            found[name] = {
                "model_type": "resnet",
                "depths": [1, 1, 1, 1],
                "out_features": ["stage2", "stage3", "stage4"],
            }
        elif name == "embed_dim" and isinstance(getattr(default, "num_heads", 0), list):
            continue
        elif type(value) is int:
            for pattern, limit in SMALL:
                if re.fullmatch(pattern, name):
                    if value > limit:
                        found[name] = limit
                    break
    return found


def transformers_inputs(model: Any) -> Iterator[dict[str, Tensor]]:
    """What it may want, likeliest first."""
    config = model.config
    ids = torch.randint(5, 250, (1, 16))
    side = getattr(config, "image_size", None)
    for part in ("vision_config", "backbone_config", "encoder"):
        side = side or getattr(getattr(config, part, None), "image_size", None)
    channels = getattr(config, "num_channels", 3) or 3
    sides = [side] if isinstance(side, int) else list(side)[-1:] if isinstance(side, list | tuple) else [64, 224]
    bins = getattr(config, "num_mel_bins", getattr(config, "feature_size", 80)) or 80
    frames = getattr(config, "frames_per_clip", getattr(config, "num_frames", 8))
    decoder = {"decoder_input_ids": ids} if config.is_encoder_decoder else {}
    shapes: dict[str, list[tuple[int, ...]]] = {
        "pixel_values": [
            *((1, channels, each, each) for each in sides),
            (1, frames, channels, sides[-1], sides[-1]),
        ],
        "pixel_values_videos": [(1, frames, channels, sides[-1], sides[-1])],
        "input_features": [(1, bins, 3000), (1, 128, bins), (1, 128, 160), (1, 1, 1001, 64)],
        "input_values": [(1, 4000), (1, 1, 4000), (1, getattr(config, "max_length", 1024) or 1024, bins)],
    }
    wanted = [name for name in (model.main_input_name, next(iter(inspect.signature(model.forward).parameters)))]
    for name in dict.fromkeys([*wanted, "input_ids", *shapes]):
        if name == "input_ids":
            yield {name: ids} | decoder
            yield {name: torch.randint(5, 250, (1, 256))} | decoder
        for shape in shapes.get(name, []):
            yield {name: torch.randn(shape)} | (decoder if name.startswith("input") else {})


# -- Ultralytics


def ultralytics_names() -> list[str]:
    """Every YAML file."""
    import ultralytics

    return sorted(path.stem for path in Path(ultralytics.__file__).parent.glob("cfg/models/[0-9rv]*/*.yaml"))


def ultralytics_network(name: str) -> Built:
    """Of a YAML file, in the least of its scales."""
    import ultralytics

    kind = ultralytics.RTDETR if name.startswith("rtdetr") else ultralytics.YOLO
    model = kind(f"{name}.yaml").model.eval()
    return model, torch.randn(1, 3, 224, 224) if "-cls" in name else torch.randn(1, 3, 320, 320)


def plain_network(name: str) -> Built:
    """Of nobody's library."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval(), torch.randn(
        1, 3, 8, 8
    )


LIBRARIES: dict[str, tuple[Callable[[], list[str]], Callable[[str], Built]]] = {
    "timm": (timm_names, timm_network),
    "transformers": (transformers_names, transformers_network),
    "ultralytics": (ultralytics_names, ultralytics_network),
}


# -- one network


def build(family: str, name: str) -> Built:
    """A network as after training: no bias is zero, no scale one or tiny."""
    torch.manual_seed(0)
    model, inputs = LIBRARIES[family][1](name) if family else plain_network(name)
    with torch.no_grad():
        for parameter in model.parameters():
            matrix = parameter.dim() > 1 and parameter.shape[0] > 1
            fan_in = parameter.numel() // parameter.shape[0] if matrix else 25
            parameter.add_(torch.randn_like(parameter), alpha=0.5 * max(fan_in, 1) ** -0.5)
    return model.requires_grad_(True), inputs


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The tensors of its output."""
    args = () if isinstance(inputs, dict) else (inputs,)
    output = model(*args, **(inputs if isinstance(inputs, dict) else {}))
    output = dict(output) if hasattr(output, "keys") else output
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def counted(model: nn.Module, inputs: Any) -> int:
    """MACs, by PyTorch's counter, which lacks products of groups of rows."""

    def grouped(x: Any, weight: Any, *_: Any, **__: Any) -> int:
        return 2 * int(x[0]) * int(x[1]) * int(weight[2])

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: grouped})
    model.requires_grad_(False)  # the counter hooks into gradients
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        run(model, inputs)
    model.requires_grad_(True)
    return int(counter.get_total_flops()) // 2


def step(model: nn.Module, inputs: Any) -> None:
    """One of SGD, on two examples."""
    two = tree_map(lambda x: torch.cat([x, x.flip(-1) if x.is_floating_point() else x]), inputs)
    outputs = [output for output in run(model.train(), two) if output.requires_grad]
    torch.stack([output.square().mean() for output in outputs]).sum().backward()
    torch.optim.SGD(model.parameters(), lr=1e-6).step()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if not gradients or not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
        raise ValueError("no gradients, or parameters that are not finite")


def try_one(family: str, name: str, folder: Path, connection: Any) -> None:
    """All steps but the last; sends what has passed."""
    at, found = "build", dict[str, Any](family=family, model=name)
    try:
        model, inputs = build(family, name)
        with torch.no_grad():
            run(model, inputs)
        found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
        at = "trace"
        start = time.perf_counter()
        graph = trace(model, inputs if isinstance(inputs, dict) else (inputs,))
        found["trace_s"] = round(time.perf_counter() - start, 2)
        dense, fewest = int(graph.macs(graph.sizes)), int(graph.macs(np.ones_like(graph.sizes)))
        found |= {"trace": True, "macs_g": round(dense / 1e9, 3), "least": round(fewest / dense, 4)}
        at = "macs"
        if (other := counted(model, inputs)) != dense:
            found["why"] = f"macs: {dense} instead of {other}"
        found["macs"] = other == dense
        at = "slim"
        energies = channel_energies(model, graph).double().numpy()
        budget = max(dense // 2, (dense + fewest) // 2 if fewest > dense // 2 else 0)
        grouped = any(operation.kind == "_grouped_mm" for operation in graph.operations)  # wants rows of 16 bytes
        floor = np.minimum(graph.sizes, 2)  # some normalise over the channels that a layer reads
        widths = greedy(graph, energies, budget, floor, round_to=8 if grouped else 1)
        slimmed = slim(model, graph, graph.keep_best(energies, widths))
        found |= {"slim": True, "kept": round(int(graph.macs(widths)) / dense, 3)}
        with torch.no_grad():
            torch.manual_seed(1)
            expected = run(slimmed, inputs)
        save(slimmed, folder / "slim.espalier", name="zoo:build", kwargs={})
        torch.save((inputs, expected), folder / "outputs.pt")
        at = "train"
        step(slimmed, inputs)
        found["train"] = True
    except BaseException as error:
        if at == "train" and not trains(family, name):
            found |= {"train": True, "note": "the dense network does not train on its outputs either"}
        else:
            found["why"] = f"{at}: {one_line(error)}"
            found["stack"] = traceback.format_exc()[-3000:]
    connection.send(found)


def trains(family: str, name: str) -> bool:
    """Whether the dense network can be trained by a step."""
    with contextlib.suppress(Exception):
        step(*build(family, name))
        return True
    return False


def try_to_load(family: str, name: str, folder: Path, connection: Any) -> None:
    """The last step, in a process that has not seen the network."""
    try:
        inputs, expected = torch.load(folder / "outputs.pt", weights_only=False)
        model = load(folder / "slim.espalier", network=lambda: build(family, name)[0])
        with torch.no_grad():
            torch.manual_seed(1)
            got = run(model, inputs)
        for one, other in zip(got, expected, strict=True):
            allowed = 1e-5 * float(other.double().abs().nan_to_num(0, 0, 0).max()) if other.numel() else 0.0
            torch.testing.assert_close(one, other, atol=allowed, rtol=1e-5, equal_nan=True)
        connection.send({"load": True})
    except BaseException as error:
        connection.send({"why": f"load: {one_line(error)}", "stack": traceback.format_exc()[-3000:]})


def one_line(error: BaseException) -> str:
    """The beginning of a message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:240]


def in_process(target: Callable[..., None], *args: Any) -> dict[str, Any]:
    """What a function sends from a process of its own."""
    context = multiprocessing.get_context("fork")  # libraries are imported once
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=target, args=(*args, sender))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv() if receiver.poll(SECONDS) else {"why": f"more than {SECONDS} s"}
    except EOFError:
        found = {"why": "its process ended, for want of memory or by a fault in a library"}
    process.join(5)
    if process.is_alive():
        process.kill()
    return found


def result(family: str, name: str) -> dict[str, Any]:
    """What passed of one network, and why what did not."""
    with tempfile.TemporaryDirectory() as folder:
        found = {"family": family, "model": name} | in_process(try_one, family, name, Path(folder))
        if found.get("train"):
            found |= in_process(try_to_load, family, name, Path(folder))
    return found


# -- the table


KNOWN = {
    "sequencer2d_s": "PyTorch's counter passes over LSTM, and the graph counts it: the rest of its steps pass",
    "vjepa2": "its smallest config is a video of 64 frames: it has not been tried for longer",
}
"""Network -> what is known of why it does not pass."""


def page(results: list[dict[str, Any]]) -> str:
    """A summary per library, what did not pass and why, and how far MACs go down."""
    lines = [
        "# The zoo",
        "",
        "espalier has no code for any of these networks of other libraries. They get random weights, are traced,",
        "cut to half of their MACs (or half of what can go), verified, trained for a step, saved and loaded. A",
        "column counts the networks that pass its step. [benchmarks/zoo.py](../benchmarks/zoo.py) says what each",
        "step is, and writes this page.",
        "",
        "| | networks | " + " | ".join(STEPS) + " | all |",
        "|---|---|" + "---|" * (len(STEPS) + 1),
    ]
    ran = [each for each in results if not each.get("why", "").startswith("build")]
    for family in LIBRARIES:
        own = [each for each in ran if each["family"] == family]
        counts = [sum(bool(each.get(part)) for each in own) for part in STEPS]
        lines.append(f"| {family} | {len(own)} | {' | '.join(map(str, counts))} | {sum(map(passed, own))} |")
    lines += ["", "What did not pass:", "", "| network | why |", "|---|---|"]
    for each in ran:
        if not passed(each):
            why = "; ".join(filter(None, (each.get("why", "").replace("|", "/"), KNOWN.get(each["model"]))))
            lines.append(f"| {each['family']}: {each['model']} | {why} |")
    left = Counter(each["family"] for each in results if each not in ran)
    told = ", ".join(f"{count} of {family}" for family, count in left.items()) or "none"
    lines += ["", f"Not counted, as they do not run when made small by the rule, or want other inputs: {told}.", ""]
    return "\n".join(lines)


def passed(found: dict[str, Any]) -> bool:
    """Whether every step did."""
    return all(found.get(part) for part in STEPS)


def operators_of_torchvision() -> Any:
    """Stands in for the compiled operators, without which torchvision is not imported; nothing calls them."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):  # they are there
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def main() -> None:
    """Tries what its results file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=LIBRARIES, action="append", help="of which library; all by default")
    parser.add_argument("--only", metavar="REGEX", help="networks whose names match; tried again")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="a line per network")
    parser.add_argument("--again", action="store_true", help="try again what did not pass")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the table, and try nothing")
    options = parser.parse_args()
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    known = {(each["family"], each["model"]): each for each in map(json.loads, lines)}
    if options.page:
        options.page.write_text(page(list(known.values())))
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    held = operators_of_torchvision()  # noqa: F841
    with tempfile.TemporaryDirectory() as folder:  # what all of them import is imported once
        receiver, sender = multiprocessing.Pipe()
        for attempt in (try_one, try_to_load):
            attempt("", "plain", Path(folder), sender)
            assert "why" not in (found := receiver.recv()), found
    for family in options.family or LIBRARIES:
        for name in LIBRARIES[family][0]():
            before = known.get((family, name))
            if options.only and not re.search(options.only, name):
                continue
            if before and not options.only and (passed(before) or not options.again):
                continue
            found = result(family, name)
            stack = found.pop("stack", "")
            print(
                family,
                name,
                "passed" if passed(found) else found.get("why"),
                stack if options.only else "",
                flush=True,
            )
            known[family, name] = found
            write(options.results, known)


def write(path: Path, known: dict[tuple[str, str], dict[str, Any]]) -> None:
    """All lines, in place of the file."""
    path.parent.mkdir(exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text("".join(json.dumps(known[key]) + "\n" for key in sorted(known)))
    fresh.replace(path)


if __name__ == "__main__":
    main()
