"""The union-find over labels against sets, and conjunctions against every choice of channels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espalier.pruning.tracing.labels import Ints, Labelled, LabelStore


class Naive:
    """Sets of labels in place of trees."""

    def __init__(self, count: int) -> None:
        self.classes = {label: {label} for label in range(1, count + 1)}
        self.frozen: list[tuple[int, str]] = []

    def unify(self, first: list[int], second: list[int], reason: str) -> None:
        for a, b in zip(first, second, strict=True):
            if a and b:
                merged = self.classes[a] | self.classes[b]
                self.classes.update(dict.fromkeys(merged, merged))
            else:
                self.freeze([a, b], reason)

    def freeze(self, labels: list[int], reason: str) -> None:
        self.frozen += [(label, reason) for label in labels if label]

    def root(self, label: int) -> int:
        return min(self.classes[label]) if label else 0

    def reasons(self) -> dict[int, str]:
        first: dict[int, str] = {}
        for label, reason in self.frozen:
            first.setdefault(self.root(label), reason)
        return first


COUNT = 12
LABEL = st.integers(0, COUNT)
STEP = st.one_of(
    st.tuples(st.just("unify"), st.lists(st.tuples(LABEL, LABEL), max_size=10)),
    st.tuples(st.just("freeze"), st.lists(st.tuples(LABEL, LABEL), max_size=1)),
)


def column(labels: list[int]) -> Ints:
    return np.array(labels, dtype=np.int64).reshape(-1, 1)


@given(st.lists(STEP, max_size=8))
def test_the_store_is_a_union_find_with_reasons(steps: list[tuple[str, list[tuple[int, int]]]]) -> None:
    store, naive = LabelStore(), Naive(COUNT)
    assert store.fresh(COUNT)[:, 0].tolist() == list(range(1, COUNT + 1))
    for number, (kind, pairs) in enumerate(steps):
        first, second = [a for a, _ in pairs], [b for _, b in pairs]
        reason = f"step {number}"
        if kind == "unify":
            store.unify(column(first), column(second), reason)
            naive.unify(first, second, reason)
        else:
            store.freeze(column(first), reason)
            naive.freeze(first, reason)
        everything = column(list(range(COUNT + 1)))
        assert store.atoms(everything)[:, 0].tolist() == [naive.root(label) for label in range(COUNT + 1)]
        assert store.frozen() == naive.reasons()


def test_labels_outgrow_the_first_store() -> None:
    store = LabelStore()
    first, second = store.fresh(900), store.fresh(5000)
    store.unify(first[:10], second[-10:], "far apart")
    assert store.atoms(second[-10:]).tolist() == first[:10].tolist()
    assert store.atoms(second[:-10]).tolist() == second[:-10].tolist()


def test_long_chains_become_one_class() -> None:
    store = LabelStore()
    labels = store.fresh(3000)
    store.unify(labels[:-1], labels[1:], "chain")
    assert np.unique(store.atoms(labels)).tolist() == [1]


# ------------------------------------------------------------------------------------------ conjunctions


def kept(store: LabelStore, rows: Ints, generator: np.random.Generator) -> list[bool]:
    """Which rows are kept by one random choice of atoms, the same for the same generator."""
    choice = generator.random(10_000) < 0.5
    choice[0] = True
    choice[list(store.frozen())] = True
    found: list[bool] = np.all(choice[store.atoms(rows)], axis=1).tolist()
    return found


def equivalent(store: LabelStore, first: Ints, second: Ints) -> bool:
    seeds = range(50)
    return all(
        kept(store, first, np.random.default_rng(s)) == kept(store, second, np.random.default_rng(s)) for s in seeds
    )


def pairs(outer: Ints, inner: Ints) -> Ints:
    return np.concatenate([outer.repeat(len(inner), axis=0), np.tile(inner, (len(outer), 1))], axis=1)


def test_a_label_becomes_the_conjunction_it_is_unified_with() -> None:
    store = LabelStore()
    flat, heads, inside = store.fresh(12), store.fresh(3), store.fresh(4)
    store.unify(flat, pairs(heads, inside), "split into heads")
    assert store.atoms(flat).tolist() == pairs(heads, inside).tolist()
    assert len(np.unique(store.atoms(flat))) == 7  # nothing was coupled for it


def test_definitions_that_share_their_parts_stay_short() -> None:
    """Sixty levels, each defined by the next one's two labels: a window moved over windows does so."""
    store = LabelStore()
    rows = store.fresh(3)[:, 0]
    top, first, second = (np.array([[label]]) for label in rows)
    store.unify(top, np.concatenate([first, second], axis=1), "")
    for _ in range(60):
        lower = store.fresh(2).T
        store.unify(first, lower, "")
        store.unify(second, lower, "")
        first, second = lower[:, :1], lower[:, 1:]
    assert store.atoms(top).tolist() == lower.tolist()


def test_two_splits_into_heads_are_matched_head_by_head() -> None:
    store = LabelStore()
    query, key = store.fresh(12), store.fresh(12)
    for flat in (query, key):
        store.unify(flat, pairs(store.fresh(3), store.fresh(4)), "split into heads")
    store.unify(query, key, "scores")
    assert store.atoms(query).tolist() == store.atoms(key).tolist()
    assert len(np.unique(store.atoms(query))) == 7


def test_freezing_a_conjunction_freezes_its_parts() -> None:
    store = LabelStore()
    flat, heads, inside = store.fresh(6), store.fresh(2), store.fresh(3)
    store.unify(flat, pairs(heads, inside), "split")
    store.freeze(flat[:1], "seen")
    assert store.frozen() == {int(heads[0, 0]): "seen", int(inside[0, 0]): "seen"}


def test_a_label_that_is_part_of_its_own_conjunction_is_all_of_it() -> None:
    store = LabelStore()
    a, b = store.fresh(1), store.fresh(1)
    store.unify(a, np.concatenate([a, b], axis=1), "a is a and b")
    assert store.atoms(a).tolist() == store.atoms(b).tolist()


ROWS = st.lists(st.lists(st.integers(0, 8), min_size=3, max_size=3), min_size=1, max_size=4)


@given(st.lists(st.tuples(ROWS, ROWS), max_size=4))
def test_whatever_is_unified_is_kept_together(steps: list[tuple[list[list[int]], list[list[int]]]]) -> None:
    """Also where conjunctions overlap, contain each other, or would define each other in a circle."""
    store = LabelStore()
    store.fresh(4)
    store.fresh(4)
    unified: list[tuple[Ints, Ints]] = []
    for left, right in steps:
        length = min(len(left), len(right))
        first, second = np.array(left[:length], dtype=np.int64), np.array(right[:length], dtype=np.int64)
        store.unify(first, second, "step")
        unified.append((first, second))
        assert all(equivalent(store, a, b) for a, b in unified)


# --------------------------------------------------------------------------------------------- tensors


def test_fixed_has_no_channels() -> None:
    labelled = Labelled.fixed((2, 3, 4))
    assert labelled.labelled == ()
    assert labelled.rows(1).tolist() == [[0], [0], [0]]


@pytest.mark.parametrize("dim", [1, -2])
def test_a_dimension_is_replaced(dim: int) -> None:
    rows = column([5, 6, 7])
    labelled = Labelled.fixed((2, 3, 4)).with_dims({dim: rows})
    assert labelled.labelled == (1,)
    assert labelled.rows(dim).tolist() == rows.tolist() and len(labelled.all_rows()) == 1
