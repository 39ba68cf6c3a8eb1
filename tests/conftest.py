"""What holds for every test: how hypothesis searches, and where logs go; `tests.support.skips` says what is skipped."""

import os
from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

# A busy machine is not a failure, so no deadline. CI tries the same examples each time: a red run is a change's fault.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("here"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")


@pytest.fixture(autouse=True)
def _logs_go_nowhere_else() -> Iterator[None]:
    """Undo what a test that runs the server in this process has set up for its own standard error."""
    yield
    structlog.reset_defaults()
