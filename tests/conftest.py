"""What holds for every test: how hypothesis searches. Skips are a matter of `tests.support.skips`."""

import os

from hypothesis import HealthCheck, settings

# A busy machine is not a failure, so no deadline. CI tries the same examples each time: a red run is a change's fault.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("here"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")
