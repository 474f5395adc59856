"""Times the ONNX files of a folder: copy both to the device, and run `python time_onnx.py FOLDER`.

Needs onnxruntime and NumPy, and nothing of espalier. Writes FOLDER/times.json, which `espalier latency fit` reads.
It goes on where it was interrupted. With another runtime, write the same file in whatever way suits:

    {"device": "what it was measured on, for people", "milliseconds": {"000.onnx": 1.23, "001.onnx": 0.98, ...}}
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy
import onnxruntime

TYPES = {
    "tensor(float)": numpy.float32,
    "tensor(double)": numpy.float64,
    "tensor(float16)": numpy.float16,
    "tensor(int64)": numpy.int64,
    "tensor(int32)": numpy.int32,
    "tensor(uint8)": numpy.uint8,
    "tensor(bool)": numpy.bool_,
}
"""Of inputs."""


def session_of(file: Path, threads: int) -> tuple[Any, dict[str, Any]]:
    """A session, and inputs for it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    inputs = {each.name: numpy.zeros(each.shape, TYPES[each.type]) for each in session.get_inputs()}
    return session, inputs


def took(session: Any, inputs: dict[str, Any]) -> float:
    """Milliseconds of one pass."""
    start = time.perf_counter()
    session.run(None, inputs)
    return 1000 * (time.perf_counter() - start)


def main() -> None:
    """Each file beside the first one, which is the unpruned network, so that what slows the device hits both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    args = parser.parse_args()
    files, result = sorted(args.folder.glob("*.onnx")), args.folder / "times.json"
    if not files:
        parser.error(f"there are no .onnx files in {args.folder}")
    where = platform.processor() or platform.machine()
    device = f"onnxruntime {onnxruntime.__version__}, {where}, {args.threads} threads"
    known: Any = json.loads(result.read_text()) if result.exists() else {"device": device, "milliseconds": {}}
    if known["device"] != device:
        parser.error(f"{result} holds times of {known['device']}: move it away, and time {device} anew")
    times = known["milliseconds"]
    dense, dense_inputs = session_of(files[0], args.threads)
    for _ in range(5):
        took(dense, dense_inputs)
    unpruned = times.get(files[0].name) or min(took(dense, dense_inputs) for _ in range(args.repeats))
    for number, file in enumerate(files):
        if file.name in times:
            continue
        session, inputs = session_of(file, args.threads)
        for _ in range(3):
            took(session, inputs)
        pairs = [(took(session, inputs), took(dense, dense_inputs)) for _ in range(args.repeats)]
        own, beside = (min(column) for column in zip(*pairs, strict=True))
        times[file.name] = unpruned * own / beside
        partial = result.with_suffix(".part")
        partial.write_text(json.dumps({"device": device, "milliseconds": times}, indent=1))
        os.replace(partial, result)
        print(f"{number + 1} of {len(files)}: {file.name} {times[file.name]:.3f} ms", flush=True)
    print(f"wrote {result}")


if __name__ == "__main__":
    main()
