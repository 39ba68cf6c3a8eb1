"""Living lives: how hypothesis searches them."""

from __future__ import annotations

import logging
import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING

import hypothesis
import structlog
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.life import SIZES
from tests.support.steps import scratch
from tests.support.tally import Tally
from tests.support.template import make_template

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.life import Life

LIVES = settings(
    database=None,
    deadline=None,
    phases=(Phase.generate,),
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
"""How lives are searched: none is lived again, and one that went wrong is not shortened, because that takes hours."""


def live(life: type[Life], seed: int, lives: int, steps: int) -> None:
    """Live lives of so many steps each; the seed says which. Nothing is logged: thousands of starts would.

    Raises:
        AssertionError: One of them went wrong; its steps are on standard output.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    once = settings(LIVES, max_examples=lives, stateful_step_count=steps)
    run_state_machine_as_test(hypothesis.seed(seed)(type(life.__name__, (life,), {})), settings=once)


@contextmanager
def prepared(life: type[Life]) -> Iterator[type[Life]]:
    """Make the logs that lives begin with."""
    folder = scratch()
    try:
        life.templates = [make_template(folder / str(size), size) for size in SIZES]
        life.tally = Tally()
        yield life
    finally:
        shutil.rmtree(folder)
