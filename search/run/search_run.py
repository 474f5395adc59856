"""A whole run: prepare, climb the ladder, search, fine-tune, read the test split once, write the result."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from torch import Tensor, nn

from espalier.errors import ConfigError, DataError, StorageError, StudyMismatch, WeightsError
from espalier.pruning.graph.budget import text_of_macs
from espalier.pruning.importance.criterion import Criterion
from espalier.pruning.torch_private import tree_map
from espalier.search.cluster.in_process import search_in_process
from espalier.search.cluster.jobs import Share, check_sent
from espalier.search.cluster.process_settings import computing
from espalier.search.cluster.ray_cluster import join
from espalier.search.config.fields import GIVEN
from espalier.search.config.loading import OF_ONE_RUN, Config, comparable, parse_config, recorded
from espalier.search.config.trust import check_trusted, names_of
from espalier.search.evaluation.candidate_networks import EvaluationSpec
from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.evaluation.importance import code_of_criterion
from espalier.search.files import example_inputs
from espalier.search.files.network_file import class_of
from espalier.search.progress.reporter import Reporter, Silent
from espalier.search.progress.tensorboard import curves
from espalier.search.run.experiment import Experiment
from espalier.search.run.final_evaluation import FinalEvaluation, same_scores, timed, versions
from espalier.search.run.latency_budget import Settled, read_model, settle_latency, with_latency
from espalier.search.run.prepare import Given, check_dense_score, prepare
from espalier.search.run.result import Result, ending_of
from espalier.search.samplers import begin
from espalier.search.samplers.agents import knowledge_at
from espalier.search.spaces.space import Space
from espalier.search.study.active_runs import Heartbeat
from espalier.search.study.keys import EXAMPLE, FINAL_SEEDS, LATENCY, PREFIX, RESULT
from espalier.search.study.ledger import Ledger, Record
from espalier.search.study.mirror import CheckpointMirror, check_mirror
from espalier.search.study.overview import find
from espalier.search.study.pareto_front import front
from espalier.search.study.run_folder import (
    LADDER,
    LadderFiles,
    folder_here,
    folder_passed_over,
    made_elsewhere,
    make_folder,
    run_folder_here,
    settle,
)
from espalier.search.study.storage import (
    check_fingerprint,
    create_study,
    find_study,
    once,
    open_storage,
    redact,
    sqlite_url,
)
from espalier.search.study.storage_retry import with_retries
from espalier.search.tasks.code_digests import digest_of
from espalier.search.tasks.functions import length_of
from espalier.search.tasks.task import Task


@computing()
def run(
    config: Config,
    *,
    study: str,
    out: Path,
    storage: str | None = None,
    reporter: Reporter | None = None,
    mirror: str | None = None,
    must_exist: bool = False,
    given: Given | None = None,
) -> Result:
    """Runs a search from wherever it stands: a new study, or one that was interrupted or finished.

    Args:
        config: checked settings.
        study: its name in the storage.
        out: folder for checkpoints, ``result.json`` and ``pruned.espalier``.
        storage: any Optuna URL; by default SQLite in `out`.
        reporter: told the progress.
        mirror: fsspec URL where the checkpoints are kept too. One that an earlier run named is told, not used.
        must_exist: whether the study has to be there already.
        given: network and task, where the config does not name them.

    Raises:
        EspalierError: of the kinds of `prepare`, or StorageError, or StudyMismatch.
    """
    url, told = storage or default_storage(out), reporter or Silent()
    return _Run(config, study, out, url, told, mirror, must_exist, given).go()


def resume(
    storage: str,
    study: str,
    *,
    given: Given | None = None,
    overrides: Sequence[str] = (),
    change: Callable[[Config], Config] = lambda config: config,
    out: Path | None = None,
    reporter: Reporter | None = None,
    mirror: str | None = None,
    trust: str | Sequence[str] = (),
) -> Result:
    """Goes on with a study from its storage alone, on any machine.

    Args:
        storage: its URL.
        study: its name.
        given: network and task, where the study does not name them.
        overrides: ``key.path=value`` settings that win over the study's; those on which its trials depend cannot.
        change: from the study's config to the one to go on with: more trials, other workers.
        out: run folder; by default the one that this machine used before, if more than the storage says so (see
            `espalier.search.study.run_folder`), or ``runs/STUDY``.
        reporter: told the progress.
        mirror: as in `run`.
        trust: packages, or callables as ``package.module:callable``, that the study may name its network and its
            data set from; built-in ones need none.

    Raises:
        EspalierError: as `run`; a path that is not there on this machine is named with the key that overrides it.
    """
    config, folder = config_of(storage, study, overrides, trust=trust, out=out)
    if given is not None and GIVEN not in (config.model.name, config.task.name):
        raise ConfigError(f"the study {study!r} names its network and task: give it none")
    attributes = find(open_storage(storage, create=False), study, storage).user_attrs
    say_what_is_passed_over(attributes, folder, reporter or Silent())
    try:
        return run(
            change(config),
            study=study,
            out=folder,
            storage=storage,
            reporter=reporter,
            mirror=mirror,
            must_exist=True,
            given=given,
        )
    except (DataError, WeightsError) as error:
        if (hosts := made_elsewhere(attributes)) is None:
            raise
        raise type(error)(
            f"{error}; the study has run on {hosts} so far: `espalier resume` takes data.root=FOLDER and "
            "model.weights=FILE where they lie elsewhere on this machine"
        ) from error


def given_again(
    storage: str, study: str, network: nn.Module | None, task: Task | None, criterion: Criterion | None = None
) -> Given | None:
    """Network, task and criterion of a study that was given them in Python, with the example inputs that it keeps.

    Raises:
        ConfigError: one of the two is missing.
        StorageError: the storage cannot be read, has no such study, or the example is damaged.
    """
    if network is None and task is None and criterion is None:
        return None
    if network is None or task is None:
        raise ConfigError("a study that was given a network and a task in Python goes on with both of them")
    if not hasattr(task, "example_inputs"):
        attributes = find(open_storage(storage, create=False), study, storage).user_attrs
        if (kept := attributes.get(PREFIX + EXAMPLE)) is None:
            raise ConfigError(f"the study {study!r} was not given its network and task in Python: it names them")
        task.example_inputs = _moved(example_inputs.from_json(kept), network)
    return Given(network, task.on(task.example_inputs, network), criterion)


def _moved(inputs: Any, network: nn.Module) -> Any:
    device = next(network.parameters()).device
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, inputs)


def default_storage(out: Path) -> str:
    """The SQLite storage in a run folder."""
    return sqlite_url(out / "study.db")


def config_of(
    url: str,
    study: str,
    overrides: Sequence[str] = (),
    *,
    trust: str | Sequence[str] = (),
    out: Path | None = None,
) -> tuple[Config, Path]:
    """The config and the run folder of a study on this machine, from its storage.

    Nothing that the storage names is imported, unless it is built in, in `trust`, or in an override.

    Args:
        url: of the storage.
        study: its name.
        overrides: as in `resume`.
        trust: likewise.
        out: the run folder, where the user names one.

    Raises:
        StorageError: the storage cannot be read, or has no such study.
        ConfigError: the overrides break rules, or the study names a network or data that are not trusted.
    """
    trusted = names_of(trust)
    attributes = find(open_storage(url, create=False), study, url).user_attrs
    origin = f"the config of study {study!r}"
    content = attributes[PREFIX + "config"]
    if not isinstance(content, dict):
        raise StorageError(f"{origin} in {redact(url)} is damaged: it is of type {type(content).__name__}")
    here = _with_own_paths(parse_config(recorded(content), origin), attributes)
    config = parse_config(here.model_dump(mode="json"), origin, overrides) if overrides else here
    typed = {override.partition("=")[0].strip() for override in overrides}
    named: dict[str, tuple[str, Mapping[str, Any]]] = {
        "model.name": (config.model.name, config.model.kwargs),
        "data.name": (config.data.name, config.data.kwargs),
        "task.name": (config.task.name, config.task.kwargs),
        "search.criterion": (config.search.criterion, {}),
        "regularizer.name": (config.regularizer.name, config.regularizer.kwargs),
    }
    stored = [(key, *each) for key, each in named.items() if not typed & {key, key.partition(".")[0]}]
    check_trusted(stored, trusted, origin)
    return config, out or folder_here(study, attributes, url)


def _with_own_paths(config: Config, attributes: Mapping[str, Any]) -> Config:
    """A study's config with this machine's own paths, where it has run the study before."""
    place = run_folder_here(attributes)
    if place is None:
        return config
    data, model = {"root": place.root and Path(place.root)}, {"weights": place.weights and Path(place.weights)}
    return config.model_copy(
        update={"data": config.data.model_copy(update=data), "model": config.model.model_copy(update=model)}
    )


def say_what_is_passed_over(attributes: Mapping[str, Any], out: Path, reporter: Reporter) -> None:
    """Tells of a run folder that the study names and that is not used on its word."""
    if (passed := folder_passed_over(attributes, out)) is not None:
        reporter.say(f"the run folder is {out}; the study says {passed}, which --out {passed} goes on in")


class _Run:
    def __init__(
        self,
        config: Config,
        study: str,
        out: Path,
        url: str,
        reporter: Reporter,
        mirror: str | None,
        must_exist: bool,
        given: Given | None,
    ) -> None:
        self.config, self.study_name, self.out, self.url = config, study, out, url
        self.reporter, self.mirror, self.must_exist, self.given = reporter, mirror, must_exist, given
        self.seconds: dict[str, float] = {}

    def go(self) -> Result:
        with timed(self.seconds, "prepare"):
            self.prepared = prepare(self.config, self.given, takes_latency=True)
            if self.config.workers and (sent := self.prepared.task.parts_to_send()):
                check_sent(sent)
            self.knowledge = knowledge_at(self.config.search.agent.pretrained)
            latency = self._settle_latency() if self.config.budget.limits_latency else None
            study = self._open_study()
            if latency is not None:  # of drivers that begin at once, the first decides
                decided = once(study, LATENCY, latency.to_json)
                self.prepared = with_latency(self.config, self.prepared, Settled.from_json(decided))
        for line in (self._headline(), *self.prepared.notes):
            self.reporter.say(line)
        with ExitStack() as stack:
            self.reporter = stack.enter_context(Heartbeat(study, self.reporter))
            self.reporter = stack.enter_context(curves(self.reporter, self.out))
            if self.mirror is not None:
                stack.enter_context(CheckpointMirror(self.out, self.mirror, self.study_name, self.reporter))
            workers = join(
                self.config.workers,
                stack,
                address=self.config.cluster.address,
                share=self.share,
                folder=self.out,
                say=self.reporter.say,
            )
            self.experiment = Experiment(self.config, self.prepared, self.out, self.reporter, workers)
            self._train_ladder(study)
            task, wanted = self.prepared.task, self.config.search.scoring_images
            if 0 < (scored := task.size("scoring")) < wanted:
                of = f"{scored} of the {task.size('held_out')} held-out images"
                self.reporter.say(f"candidates are scored on {of}; the others judge the finalists")
            recorded = partial(once, study)
            self.experiment.settle_execution(recorded)
            workers.ready()
            with timed(self.seconds, "strength"):
                spaces = self.experiment.choose_spaces(self.prepared.budgets, recorded)
            space = spaces[self.prepared.budget]
            if self.config.budget.front:
                opened = {rung for own in spaces.values() for rung in own.rungs}
                space = self.experiment.space(rungs=sorted(opened))
            records = self._search(study, space, self.experiment.spec.scored_only)
            final = FinalEvaluation(self.experiment, study, searched=space, spaces=spaces, seconds=self.seconds)
            results, ending = [], ending_of(self.out, self.study_name)
            if ending:
                self.reporter.say(
                    f"{self.out} holds the result of another study, which stays: this one's is result{ending}.json"
                )
            for number, budget in enumerate(self.prepared.budgets):
                several = len(self.prepared.budgets) > 1
                if several:
                    self.reporter.say(f"budget {budget}")
                name = f"pruned{ending}-{number + 1}.espalier" if several else f"pruned{ending}.espalier"
                results.append(final.under(budget, records, self.out / name))
            *others, result = results  # the tightest budget, which was searched, comes last
            points = front(study, space) if space.seeks_front else []
            result = replace(result, others=tuple(others), front=tuple(points))
            result.write(self.out / f"result{ending}.json")
            study.set_user_attr(PREFIX + RESULT, result.summary())
        return result

    @property
    def share(self) -> Share:
        """What each worker gets of its node."""
        return Share(self.config.cluster.cpus_per_worker, self.config.cluster.gpus_per_worker)

    # -- stages

    def _settle_latency(self) -> Settled:
        """What the study knows of its device, or what is measured now."""
        try:
            study = find_study(open_storage(self.url, create=False), self.study_name, self.url)
        except StorageError:
            study = None  # `_open_study` says why, where it should be there
        if study is not None and (kept := study.user_attrs.get(PREFIX + LATENCY)) is not None:
            settled, file = Settled.from_json(kept), self.config.budget.device.model
            if file is not None and file.exists() and read_model(file).device != settled.model.device:
                self.reporter.say(f"{file} is passed over: the study began with a model of {settled.model.device}")
        else:
            settled = settle_latency(self.config, self.prepared, self.reporter)
        self.prepared = with_latency(self.config, self.prepared, settled)
        return settled

    def _open_study(self) -> optuna.Study:
        """Finds or makes the study; refuses one that was made with other settings before writing anything."""
        fingerprint = self.config.fingerprint() | {
            "weights": self.prepared.origin,
            "graph": self.prepared.graph.digest,
            **self.prepared.task.fingerprint(),
        }
        if self.prepared.criterion is not None:
            fingerprint["search.criterion"] = f"{GIVEN} {digest_of(self.prepared.criterion.function)}"
        else:
            code = code_of_criterion(self.config.search.criterion)
            fingerprint |= {f"the code of search.{key}": digest for key, digest in code.items()}
        mirror = None if self.mirror is None else check_mirror(self.mirror)
        if self.url == default_storage(self.out):
            make_folder(self.out)
        storage = with_retries(open_storage(self.url, create=not self.must_exist), notify=self.reporter.say)
        study = find_study(storage, self.study_name, self.url)
        config = self.config.model_dump(mode="json")
        config["cluster"] |= OF_ONE_RUN
        if study is None:
            attributes: dict[str, Any] = {"config": config, "fingerprint": fingerprint, "versions": versions()}
            graph = self.prepared.graph
            groups = [[group.name, group.size] for group in graph.groups]
            attributes["network"] = {"macs": self.prepared.dense_macs, "groups": groups}
            if self.given is not None:
                attributes[EXAMPLE] = example_inputs.to_json(self.prepared.task.example_inputs)
            study = create_study(storage, self.study_name, attributes, front=self.config.budget.front)
            check_fingerprint(study, fingerprint)  # another driver may have made it at this moment
        else:
            check_fingerprint(study, comparable(fingerprint, study.user_attrs[PREFIX + "fingerprint"]))
            self._check_seeds(study)
            study.set_user_attr(PREFIX + "config", config)
        check_dense_score(self.prepared.task, partial(once, study), f"the study {self.study_name!r}")
        if mirror is not None:
            study.set_user_attr(PREFIX + "mirror", mirror)
        elif (named := study.user_attrs.get(PREFIX + "mirror")) is not None:
            self.reporter.say(
                f"an earlier run kept the checkpoints in {named} too: --mirror {named} fetches what is not "
                "here and sends what is new"
            )
        self.mirror = mirror
        settle(study, self.out, root=self.config.data.root, weights=self.config.model.weights)
        make_folder(self.out)
        return study

    def _check_seeds(self, study: optuna.Study) -> None:
        """Refuses another number of seeds once a result was seen: intervals hold for a number fixed before."""
        fixed, wanted = study.user_attrs.get(PREFIX + FINAL_SEEDS), self.config.finetune.seeds
        if fixed is not None and fixed["count"] != wanted:
            raise StudyMismatch(
                f"the study {study.study_name!r} was compared with greedy pruning on the test split over "
                f"{fixed['count']} seeds, got finetune.seeds = {wanted}: seeds that are added once a result was "
                "seen make its interval claim more than it holds; choose another study name to compare over others"
            )

    def _train_ladder(self, study: optuna.Study) -> None:
        """Trains the ladder that the study searches over, again where its files are not here."""
        files = LadderFiles(study, self.out)
        if files.missing:
            copied = f", which {files.where} has" if files.where else ""
            self.reporter.say(f"not in {self.out / LADDER}, and trained again: {', '.join(files.missing)}{copied}")
        with timed(self.seconds, "ladder"):
            self.experiment.train_ladder(files.check)
        files.record(self.experiment.dense.digest, self.experiment.digests)

    def _search(self, study: optuna.Study, space: Space, spec: EvaluationSpec) -> list[Record]:
        """Every finished trial, once there are enough."""
        section, cluster = self.config.search, self.config.cluster
        sampler, first = begin(
            section.sampler,
            space,
            self.config.seed,
            knowledge=self.knowledge,
            folder=self.out,
        )
        ledger = Ledger(
            study,
            space,
            sampler,
            measure=self.prepared.measure,
            target=section.trials,
            max_failures=cluster.max_failures,
        )
        deadline = time.monotonic() + (cluster.time_budget or math.inf)
        with timed(self.seconds, "search"), ledger:
            ledger.enqueue(first)
            with self.reporter.meter("search", section.trials, "candidates", done=ledger.complete) as meter:
                if self.config.workers:
                    from espalier.search.cluster.tune import search_on_ray

                    search_on_ray(
                        ledger,
                        spec,
                        self.config.workers,
                        meter,
                        share=self.share,
                        timeout=cluster.candidate_timeout,
                        deadline=deadline,
                    )
                else:
                    if cluster.candidate_timeout is not None:
                        self.reporter.say("cluster.candidate_timeout needs workers: here nothing ends a candidate")
                    search_in_process(ledger, Evaluator(spec), meter, deadline=deadline)
        records = ledger.records()
        if len(records) < section.trials:
            self.reporter.say(
                f"the time budget of {cluster.time_budget:g} s is spent: {len(records)} of {section.trials} trials "
                "are finished and what they found is concluded; `espalier resume` goes on with the others"
            )
        if said := same_scores(records):
            self.reporter.say(said)
        return records

    def _headline(self) -> str:
        prepared = self.prepared
        name = class_of(prepared.model) if self.config.model.name == GIVEN else self.config.model.name
        sizes = ", ".join(f"{count} {part}" for part, count in prepared.task.sizes().items())
        budgets = "; ".join(map(str, prepared.budgets))
        dense, given = prepared.dense_macs, length_of(prepared.graph.example)
        macs = " ".join(text_of_macs(dense, dense)) + (f" (for one of {given} examples)" if given > 1 else "")
        trains = "" if "training" in prepared.task.offers else "; this task cannot train: nothing is fine-tuned"
        return (
            f"{self.study_name}: {name}, {macs} in "
            f"{len(prepared.graph.groups)} groups of {prepared.graph.n_channels} channels; budget "
            f"{budgets}" + (f"; {sizes} images" if sizes else "") + trains
        )
