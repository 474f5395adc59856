"""The search in this process: for tests, debugging and machines without Ray."""

from __future__ import annotations

import math
import time

from espalier.search.evaluation.evaluator import Evaluator
from espalier.search.progress.reporter import Meter
from espalier.search.study.ledger import Ledger


def search_in_process(ledger: Ledger, evaluator: Evaluator, meter: Meter, *, deadline: float = math.inf) -> None:
    """Asks, evaluates and tells until the study has its trials, or the time is over.

    Args:
        ledger: signed in.
        evaluator: scores candidates.
        meter: told the finished trials and the best value.
        deadline: of `time.monotonic`; the candidate that is under way by then is finished.
    """
    while ledger.complete < ledger.target and time.monotonic() < deadline:
        proposal = ledger.ask()
        if proposal is None:
            time.sleep(0.2)  # another driver has the rest in hand
            continue
        try:
            score = evaluator(proposal.candidate)
        except Exception as error:  # whatever a user's network raises is the candidate's failure, not the search's
            ledger.fail(proposal, f"{type(error).__name__}: {error}")
            continue
        ledger.tell(proposal, score)
        ledger.report(meter)
    ledger.report(meter)
