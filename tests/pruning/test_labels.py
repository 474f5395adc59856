"""The union-find over labels against sets, and label tensors against their one-label-per-position form."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from espalier.pruning.labels import Labelled, LabelStore


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


@given(st.lists(STEP, max_size=8))
def test_the_store_is_a_union_find_with_reasons(steps: list[tuple[str, list[tuple[int, int]]]]) -> None:
    store, naive = LabelStore(), Naive(COUNT)
    assert store.fresh(COUNT).tolist() == list(range(1, COUNT + 1))
    for number, (kind, pairs) in enumerate(steps):
        first, second = [a for a, _ in pairs], [b for _, b in pairs]
        reason = f"step {number}"
        if kind == "unify":
            store.unify(torch.tensor(first, dtype=torch.int64), torch.tensor(second, dtype=torch.int64), reason)
            naive.unify(first, second, reason)
        else:
            store.freeze(torch.tensor(first, dtype=torch.int64), reason)
            naive.freeze(first, reason)
        everything = torch.arange(COUNT + 1)
        assert store.find(everything).tolist() == [naive.root(label) for label in range(COUNT + 1)]
        assert store.frozen() == naive.reasons()


def test_unify_broadcasts() -> None:
    store = LabelStore()
    rows, column = store.fresh(6).reshape(2, 3), store.fresh(2).reshape(2, 1)
    store.unify(rows, column, "broadcast")
    assert store.find(rows).tolist() == [[1, 1, 1], [4, 4, 4]]
    assert store.find(column).tolist() == [[1], [4]]


def test_labels_outgrow_the_first_store() -> None:
    store = LabelStore()
    first, second = store.fresh(900), store.fresh(5000)
    store.unify(first[:10], second[-10:], "far apart")
    assert store.find(second[-10:]).tolist() == first[:10].tolist()
    assert store.find(second[:-10]).tolist() == second[:-10].tolist()


def test_long_chains_become_one_class() -> None:
    store = LabelStore()
    labels = store.fresh(3000)
    store.unify(labels[:-1], labels[1:], "chain")
    assert store.find(labels).unique().tolist() == [1]


def test_fixed_has_no_channels() -> None:
    labelled = Labelled.fixed((2, 3, 4))
    assert labelled.compact.shape == (1, 1, 1)
    assert labelled.full.shape == (2, 3, 4) and not labelled.full.any()
    assert labelled.varying == ()


def test_labels_along_a_dimension() -> None:
    labelled = Labelled.along(1, torch.tensor([5, 6, 7]), (2, 3, 4))
    assert labelled.varying == (1,)
    assert labelled.full[0, :, 2].tolist() == [5, 6, 7]
    for dim in (1, -2):
        vector = labelled.vector(dim)
        assert vector is not None and vector.tolist() == [5, 6, 7]
    assert labelled.vector(0) is None


@given(st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=4), st.data())
def test_squashed_drops_what_labels_do_not_depend_on(dims: list[tuple[int, bool]], data: st.DataObject) -> None:
    store = LabelStore()
    shape = [size for size, _ in dims]
    compact = torch.Size([size if varies else 1 for size, varies in dims])
    full = store.fresh(compact.numel()).reshape(compact).expand(shape)
    order = data.draw(st.permutations(range(len(shape))))
    full = full.permute(*order)
    dense = data.draw(st.booleans())
    labelled = Labelled.squashed(full.contiguous() if dense else full, store)
    assert torch.equal(labelled.full, full)
    sizes = [dims[dim][0] if dims[dim][1] else 1 for dim in order]
    assert list(labelled.compact.shape) == sizes
    assert labelled.varying == tuple(dim for dim, size in enumerate(sizes) if size > 1)


def test_squashed_sees_classes_and_not_labels() -> None:
    store = LabelStore()
    labels: Tensor = store.fresh(6).reshape(2, 3)
    store.unify(labels, labels[:1].expand(2, 3), "rows are alike")
    assert Labelled.squashed(labels, store).compact.tolist() == [[1, 2, 3]]
