"""The numbers that networks are compared by."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_LESS = re.compile(
    r"loss(es)?(?![a-z])|(?<![a-z])(errors?|err|deviation|entropy|perplexity|regret|distance|divergence|bits.per.[a-z]+"
    r"|s?mape|mae|r?msle|r?mse|nll|ppl|bpd|bpc|wer|cer|fid|crps|l1|l2|pinball)(?![a-z])",
    re.IGNORECASE,
)
_NEGATIVE = re.compile(r"(neg|negative|minus)(\b|_)", re.IGNORECASE)
"""Of what is turned round, as scikit-learn's scorers are."""
_LIKELIHOOD = re.compile(r"neg(ative)?[_ -]log[_ -]likelihood$", re.IGNORECASE)
_PART = re.compile(r"^(eval|val|valid|test|train)[_ ]", re.IGNORECASE)


def greater_is_better(name: str) -> bool:
    """Whether more is better of a metric, by the words of its name: of losses, errors and distances less is.

    >>> [greater_is_better(name) for name in ("val_f1", "eval_loss", "RMSE [m]", "test_mae", "error_rate", "power")]
    [True, False, False, False, False, True]
    >>> [greater_is_better(name) for name in ("eval_neg_rmse", "neg_log_loss", "negative_log_likelihood")]
    [True, True, False]
    >>> [greater_is_better(name) for name in ("losses", "rmse of flow", "RMSE in l/h", "eval_loss_epoch")]
    [False, False, False, False]
    >>> [greater_is_better(name) for name in ("R2", "val_acc_epoch", "lossless share", "terror alerts")]
    [True, True, True, True]
    """
    plain = _PART.sub("", name.strip())
    if _LIKELIHOOD.search(plain):
        return False
    return _LESS.search(plain) is None or _NEGATIVE.match(plain) is not None


@dataclass(frozen=True)
class Metric:
    """A number that says how good a network is.

    Attributes:
        key: its name in configs and records.
        title: its name in tables and sentences.
        unit: of the number, such as ``%``; may be empty.
        greater_is_better: whether more of it is better.
        floor: what needs no network; None where nobody knows.
        ceiling: what a perfect network has; likewise.
    """

    key: str
    title: str
    unit: str = ""
    greater_is_better: bool = True
    floor: float | None = None
    ceiling: float | None = None

    def value(self, number: float) -> float:
        """The number such that greater is better."""
        return number if self.greater_is_better else -number

    def order(self, number: float) -> float:
        """What networks are put in order by: the `value`; NaN is worse than any."""
        return -math.inf if math.isnan(number) else self.value(number)

    def text(self, number: float, sign: str = "") -> str:
        """The number as tables show it; with its sign where that is ``+``.

        >>> Metric("top1", "top-1", "%").text(-0.001, "+")
        '+0.00'
        """
        text = format(number, f"{sign}.2f" if self.unit == "%" else f"{sign}.4g")
        return text.replace("-", sign) if text.startswith("-") and not float(text) else text  # no -0

    def change(self, difference: float) -> str:
        """A difference of `value` as tables show it: with the sign that it has in the metric itself."""
        return self.text(self.value(difference), "+")

    def interval(self, low: float, high: float) -> str:
        """Such as ``-0.20 to +0.61``: the ends of differences of `value`, with the signs of the metric itself."""
        return " to ".join(self.text(end, "+") for end in sorted((self.value(low), self.value(high))))

    def gain(self, difference: float) -> str:
        """A difference of `value`, such as ``0.20 points better``."""
        size = self.text(abs(difference))
        unit = f" {self.unit_of_differences}".rstrip()
        return f"{size}{unit} {'better' if difference >= 0 else 'worse'}"

    def words(self, number: float) -> str:
        """Such as ``top-1 91.30 %``."""
        return f"{self.title} {self.text(number)}" + (f" {self.unit}" if self.unit else "")

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Floor and ceiling of `value`, where both are known."""
        if self.floor is None or self.ceiling is None:
            return None
        low, high = sorted((self.value(self.floor), self.value(self.ceiling)))
        return low, high

    @property
    def heading(self) -> str:
        """Of a column, such as ``top-1 %``."""
        return f"{self.title} {self.unit}".rstrip()

    @property
    def unit_of_differences(self) -> str:
        """What differences are counted in: points, where it is a percentage."""
        return "points" if self.unit == "%" else self.unit

    def differences(self, what: str) -> str:
        """What differences of something are in, such as ``points of test top-1``."""
        return f"{self.unit_of_differences} of {what}" if self.unit_of_differences else what
