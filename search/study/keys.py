"""Names under which the storage holds what espalier knows: attributes of a study and of its trials."""

from __future__ import annotations

from typing import Any

PREFIX = "espalier:"

EXECUTION = "execution"
"""Of a study, how networks are run in it: an `Execution`."""
CHECKPOINTS = "checkpoints"
"""Of a study, the digests of the networks that it searches over, one per rung."""
STRENGTH = "strength:"
"""Of a study, followed by a budget's key: key of a baseline -> its top-1 once fine-tuned, from which the strength
under that budget was chosen."""
SHARED = "shared:"
"""Of a study, followed by the name of their file: the digest of weights that all widths share."""
FINAL_SEEDS = "final_seeds"
"""Of a study, over how many seeds its winner and greedy pruning were compared, once a verdict could be given."""
DENSE_SCORE = "dense_score"
"""Of a study, or a comparison, that was given its network and task in Python, the network's own score."""
EXAMPLE = "example"
"""Of a study that was given its network and task in Python, the example inputs."""
LATENCY = "latency"
"""Of a study whose budget limits latency, what it knows of its device; followed by a budget's key and a number, by
how many times its slowest finalist took the limit."""
RESULT = "result"
"""Of a study, what its last finished run found, in short."""
COMPARISON = "comparison"
"""Of a study that is a part of one: the comparison's name. Its command goes on with it."""

OLDER: dict[str, Any] = {"search.strength": "searched", "budget.depth": False, "budget.bits": []}
"""Path of a key of the config -> what studies did that are older than the key."""

CANDIDATE, SCORE, DRIVER = PREFIX + "candidate", PREFIX + "score", PREFIX + "driver"
"""Of a trial: its widths and rung, its `Score`, and the driver that has it in hand."""
RUN = PREFIX + "run"
"""Of a study, followed by a name: the lease of a run; `DRIVER` likewise, of the search that a run makes."""
FAILURE = PREFIX + "failure"
"""Of a trial that failed: why."""
