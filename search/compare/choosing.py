"""The first half of a comparison: what every method chooses, and which finalist of a search fine-tuning prefers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from espalier.search.compare.cells import Cell, Store
from espalier.search.methods import CONTROLS, SCRATCH, Choice, Material, Method, choose
from espalier.search.run.experiment import Experiment
from espalier.search.statistics.seeds import selection_seeds
from espalier.search.training.contest import Contest, decide


class Choosing:
    """Every method's choice, kept as it is made.

    Args:
        experiment: fine-tunes finalists.
        material: what methods work with.
        methods: by name.
        store: where choices are kept.
        seeds: all of the comparison's; methods that are not seeded choose with the first.
        budgets: name -> in words.
    """

    def __init__(
        self,
        experiment: Experiment,
        material: Material,
        methods: Mapping[str, Method],
        *,
        store: Store,
        seeds: Sequence[int],
        budgets: Mapping[str, str],
    ) -> None:
        self._experiment, self._material, self._methods = experiment, material, methods
        self._workers, self._reporter = experiment.workers, experiment.reporter
        self._store, self._seeds, self._budgets = store, seeds, budgets
        self._failures: dict[str, str] = {}

    def __call__(self, cells: Sequence[Cell]) -> tuple[dict[Cell, Choice], dict[str, str]]:
        """What every method chose.

        Args:
            cells: that are not finished.

        Returns:
            The choices, and key of each cell that has none -> why.
        """
        self._failures = {}
        known = {cell: choice for cell in cells if (choice := self._known(cell)) is not None}
        found = {cell: choice for cell, choice in known.items() if self._has_network(choice)}
        waiting: dict[tuple[str, str, int], list[Cell]] = {}
        there: set[tuple[str, str, int]] = set()
        for cell in cells:
            if cell.method not in CONTROLS:
                seed = cell.seed if self._methods[cell.method].seeded else self._seeds[0]
                job = cell.method, cell.budget, seed
                if cell in found:
                    there.add(job)
                else:
                    waiting.setdefault(job, []).append(cell)
        jobs = sorted(waiting, key=lambda job: not self._methods[job[0]].searches)  # the long ones first
        if jobs:
            found |= self._chosen(jobs, waiting, done=len(there - waiting.keys()))
        undecided = {cell: found.pop(cell) for cell in list(found) if found[cell].finalists}
        found |= self._decided(undecided)
        searches = [name for name, method in self._methods.items() if method.searches]
        for cell in cells:
            if cell.method == SCRATCH and cell not in found:
                source = Cell(cell.budget, searches[0], cell.seed)
                taken = found.get(source) or self._store.choice(source)
                if taken is not None and not taken.finalists:
                    self._store.choose(cell, taken)
                    found[cell] = taken
                else:
                    self._failures[cell.key] = f"{source.method}, whose widths it takes, has none"
        return found, self._failures

    def _known(self, cell: Cell) -> Choice | None:
        """What was chosen before; a method without seeds has one choice for all, those that are added later too."""
        method = self._methods.get(cell.method)
        seeds = (cell.seed,) if method is None or method.seeded else (cell.seed, *self._seeds)
        for seed in seeds:
            choice = self._store.choice(Cell(cell.budget, cell.method, seed))
            if choice is not None and (seed == cell.seed or self._has_network(choice)):
                if seed != cell.seed:
                    self._store.choose(cell, choice)
                return choice
        return None

    def _has_network(self, choice: Choice) -> bool:
        return not choice.network or (self._material.out / choice.network).is_file()

    def _chosen(
        self,
        jobs: Sequence[tuple[str, str, int]],
        waiting: Mapping[tuple[str, str, int], Sequence[Cell]],
        done: int,
    ) -> dict[Cell, Choice]:
        found: dict[Cell, Choice] = {}
        with self._reporter.meter("choosing widths", done + len(jobs), "choices", done=done) as meter:
            for number, (job, chosen) in enumerate(self._workers.map(choose, self._material, jobs), done + 1):
                method, budget, seed = job
                if isinstance(chosen, str):
                    self._failures |= {cell.key: chosen for cell in waiting[job]}
                    self._reporter.say(f"{method} at {self._budgets[budget]}, seed {seed}, failed: {chosen}")
                else:
                    chosen = chosen.kept_in(self._material.out)
                    for cell in waiting[job]:
                        other = self._store.choice(cell)  # of another process, which may have decided meanwhile
                        if other is None or other.finalists or not self._has_network(other):
                            self._store.choose(cell, chosen)
                            other = chosen
                        found[cell] = other
                meter.update(number, f"{method}, seed {seed}")
        return found

    def _decided(self, choices: Mapping[Cell, Choice]) -> dict[Cell, Choice]:
        """What searches chose, once fine-tuning has judged their finalists and greedy on held-out images."""
        own, section, contests = self._experiment, self._experiment.config.finetune, []
        for cell, choice in choices.items():
            candidates = [candidate for candidate, _ in choice.finalists]
            greedy = self._material.baselines[cell.budget]
            seeds = selection_seeds(cell.seed, section.selection_seeds)
            baseline = greedy if greedy in candidates else None  # its evaluation may have failed
            contests.append(Contest(candidates[: self._material.wanted], seeds, baseline))
        found = {}
        decided = decide(own.finetuner, contests, section.halvings)
        for (cell, choice), contest in zip(choices.items(), decided, strict=True):
            if contest.failure:
                self._failures[cell.key] = f"fine-tuning failed for all of its finalists: {contest.failure}"
            else:
                found[cell] = choice.won_by(contest.winner, contest.seconds)
                self._store.choose(cell, found[cell])
        return found
