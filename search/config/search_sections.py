"""Sections of a config about what is done under the budget, and where: pruning loop, search, comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from espalier.search.config.fields import (
    Criterion,
    Duration,
    Fraction,
    MethodName,
    NormalizationName,
    NotNegative,
    Positive,
    ProxyName,
    PruningScheduleName,
    RuntimeName,
    SamplerName,
    SearchedNormalization,
    Section,
    SpaceName,
)
from espalier.search.statistics.seeds import SELECTION
from espalier.search.tasks.precision import ScoringPrecision


class PruneConfig(Section):
    """The paper's loop, or another schedule: `espalier prune`."""

    schedule: PruningScheduleName = Field(
        default="rounds",
        description=(
            "When channels go: rounds are cut and retrained; the others cut once, at the end of what they do; one "
            "of your own is package.module:Class."
        ),
    )
    rounds: Positive = Field(default=3, description="Rounds of training, ranking and cutting.")
    strength: NotNegative | None = Field(
        default=None, description="Strength of the penalty; without one, the last of regularizer.strengths."
    )
    criterion: Criterion = Field(default="energy", description="What ranks channels.")
    normalization: NormalizationName = Field(
        default="raw", description="What makes the scores of different groups comparable."
    )
    most: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="Greatest share of a group that one round removes."
    )
    reconstruct: bool = Field(
        default=False,
        description=(
            "Whether the layers of a cut network are first solved for what the uncut one gives, on training inputs "
            "without labels."
        ),
    )
    retrain: Literal["finetune", "rewind", "scratch"] = Field(
        default="finetune",
        description=(
            "How what is left is trained: fine-tuned, by the whole dense schedule, or by that from new weights."
        ),
    )


class AgentConfig(Section):
    """Where the samplers that are agents begin."""

    pretrained: Path | None = Field(
        default=None,
        description="File of an agent that espalier agents train has written, or the agent.pt of another study.",
    )


class SearchConfig(Section):
    """The search over widths, and how the strength is chosen."""

    sampler: SamplerName = Field(default="auto", description="What proposes candidates.")
    space: SpaceName = Field(default="multipliers", description="What the numbers of a proposal mean.")
    range: Annotated[float, Field(gt=0)] = Field(
        default=1.5, description="Multipliers of energies lie between e to the minus range and e to the range."
    )
    criterion: Criterion = Field(
        default="energy",
        description="What ranks the channels of a group; one of your own is package.module:callable.",
    )
    normalization: SearchedNormalization = Field(
        default="searched",
        description="What makes the energies of different groups comparable; searched lets the search decide.",
    )
    strength: Literal["finetuned", "searched"] = Field(
        default="finetuned",
        description=(
            "Whether fine-tuning chooses the strength for the budget before the search, or the search "
            "does by its proxy."
        ),
    )
    trials: Positive = Field(default=200, description="Candidates to score.")
    proxy: ProxyName = Field(default="recalibrated", description="How a cut network is healed before it is scored.")
    measure: str = Field(
        default="calibrated",
        description=(
            "What is compared on held-out images: calibrated or plain cross_entropy, top1 or "
            "distillation; score for other tasks."
        ),
    )
    ladder: tuple[ProxyName, ...] = Field(
        default=(), description="Proxies by which the best candidates are judged again, from the cheapest."
    )
    promote: Fraction = Field(
        default=0.25,
        description="Greatest share of the candidates of each proxy that the next one of the ladder judges.",
    )
    race: bool = Field(
        default=False,
        description=(
            "Whether a candidate is given up that is far behind the best after some of the images. The best is "
            "that of the process: a search that is resumed may score losers otherwise."
        ),
    )
    scoring_images: Positive = Field(
        default=1024,
        description="Held-out images that candidates are scored on; the others judge the best of them.",
    )
    calibration_images: Positive = Field(
        default=512, description="Training images that batch norms are recalibrated on."
    )
    batch_size: Literal["auto"] | Positive = Field(default="auto", description="Images per pass; auto is 128.")
    memory_format: Literal["auto", "channels_last", "contiguous"] = Field(
        default="auto", description="Layout of images in memory; auto is channels_last."
    )
    precision: ScoringPrecision = Field(
        default="auto",
        description="Numbers of the passes; auto is bf16 where the processor or GPU computes in it, else fp32.",
    )
    finalists: Positive = Field(default=3, description="Best candidates that are fine-tuned.")
    agent: AgentConfig = Field(default=AgentConfig(), description="Where an agent begins.")

    @model_validator(mode="after")
    def _can_race(self) -> Self:
        if self.race and self.measure == "calibrated":
            raise ValueError(
                "candidates cannot race by measure: calibrated, which is no mean over images; give another one, "
                "such as top1"
            )
        return self


class ClusterConfig(Section):
    """Where candidates are evaluated, and for how long: nothing here changes what a candidate scores."""

    address: str | None = Field(
        default=None,
        description="Ray cluster: local, auto or HOST:PORT; without one, Ray is started on this machine.",
    )
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Cores, and threads, of each worker."
    )
    gpus_per_worker: NotNegative = Field(
        default=0.0, description="GPUs of each worker; 0.25 shares one between four."
    )
    time_budget: Duration | None = Field(
        default=None,
        description="Seconds, or 30m, 2h or 1d, after which the search asks for no more candidates and concludes.",
    )
    candidate_timeout: Duration | None = Field(
        default=None, description="Seconds, or 30m or 2h, after which a candidate fails and its worker is replaced."
    )
    max_failures: Positive = Field(default=20, description="Candidates that may fail before the search gives up.")

    @model_validator(mode="after")
    def _whole_gpus(self) -> Self:
        for key in ("cpus_per_worker", "gpus_per_worker"):
            value = getattr(self, key)
            if value > 1 and value != int(value):
                raise ValueError(f"{key} must be a whole number, or a fraction below 1, got {value:g}")
        return self


class LatencyConfig(Section):
    """What networks are timed in: every runtime, with every batch size; the first of both is the table's."""

    runtimes: Annotated[tuple[RuntimeName, ...], Field(min_length=1)] = Field(
        default=("eager",), description="Runtimes that every network is timed in; the table shows the first."
    )
    batches: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = Field(
        default=None, description="Images of timed passes; the table shows the first."
    )
    threads: Positive = Field(default=1, description="Threads that a pass may use.")

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        for key in ("runtimes", "batches"):
            values = getattr(self, key) or ()
            if len(set(values)) < len(values):
                raise ValueError(f"{key} must be named once each, got {', '.join(map(str, values))}")
        return self


class CompareConfig(Section):
    """The methods that are compared, under every budget of budget.keep: `espalier compare`."""

    methods: Annotated[tuple[MethodName, ...], Field(min_length=1)] = Field(
        default=("greedy", "uniform", "random", "auto"), description="Methods that are compared."
    )
    baseline: str = Field(default="greedy", description="The method that the others are measured by.")
    seeds: Annotated[int, Field(ge=1, le=SELECTION)] = Field(
        default=5, description="Seeds of search and fine-tuning; verdicts need three."
    )
    trials: Positive | None = Field(
        default=None, description="Evaluations of each search; without a number, search.trials."
    )
    scratch_epochs: NotNegative | None = Field(
        default=None,
        description=(
            "Epochs of training from new weights; without a number, as many as a searched network has seen."
        ),
    )
    latency_batch: Positive = Field(
        default=1, description="Images of a timed pass; latency.batches is the same for several."
    )
    latency: LatencyConfig = Field(default=LatencyConfig(), description="What networks are timed in.")

    @property
    def batches(self) -> tuple[int, ...]:
        """Examples of timed passes."""
        return self.latency.batches or (self.latency_batch,)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.latency_batch not in (1, *self.batches):
            raise ValueError("latency_batch is what latency.batches says for several: give one of the two")
        if len(set(self.methods)) < len(self.methods):
            raise ValueError("methods must be named once each")
        if self.baseline not in self.methods:
            raise ValueError(f"baseline must be one of methods, {', '.join(self.methods)}, got {self.baseline!r}")
        return self
