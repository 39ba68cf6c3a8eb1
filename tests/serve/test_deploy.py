"""What is in `deploy/` works: alerts, dashboard and unit."""

from __future__ import annotations

import json
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.scrape import scrape
from tests.support.server import TLOGD
from tests.support.skips import CHECKOUT, need_tool
from tlog.server.api.problems import PROBLEMS
from tlog.server.api.serve import SHUTDOWN_S, SPARE_FILES
from tlog.server.errors import Exit
from tlog.server.limit import MAX_CONNECTIONS

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.serving import Serve

DEPLOY = CHECKOUT / "deploy"
RULES = DEPLOY / "prometheus-rules.yml"
UNIT = DEPLOY / "treehead.service"

MOST_EXPOSED = 1.5
"""Of ten, as `systemd-analyze security` counts; a server needs the network and an address family."""


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=DEPLOY, capture_output=True, text=True, timeout=240, check=False)


def settings(name: str) -> list[str]:
    """Return what the unit sets a name to, in each of its lines."""
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


def panels() -> list[dict[str, object]]:
    found = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    assert isinstance(found, list)
    return found


# ----------------------------------------------------------------------------------------------- Prometheus and Grafana


def test_the_alerts_are_valid() -> None:
    done = run(need_tool("promtool"), "check", "rules", RULES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{RULES.read_text().count('alert:')} rules found" in done.stdout


@pytest.mark.timeout(300)  # a week of minutes
def test_the_alerts_fire_on_what_they_are_for_and_not_otherwise() -> None:
    done = run(need_tool("promtool"), "test", "rules", "prometheus-rules-test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tried() -> None:
    tried = (DEPLOY / "prometheus-rules-test.yml").read_text()
    assert [name for name in re.findall(r"alert: (\w+)", RULES.read_text()) if name not in tried] == []


async def test_every_metric_of_dashboard_and_alerts_is_in_a_real_answer(serve: Serve) -> None:
    server = serve()
    await scrape(server.port)  # so that a request is counted
    found = {name for name, _ in await scrape(server.port)}
    for file in ("grafana.json", "prometheus-rules.yml", "prometheus-rules-test.yml"):
        used = set(re.findall(r"\b(?:treehead|process)_[a-z_]+", (DEPLOY / file).read_text()))
        assert used
        assert used - found == set(), file


def test_every_problem_type_of_the_alerts_exists() -> None:
    used = set(re.findall(r'type="([a-z-]+)"', RULES.read_text()))
    assert used
    assert used <= {problem.name for problem in PROBLEMS}


def test_every_panel_has_its_place_and_its_questions() -> None:
    numbers = [panel["id"] for panel in panels()]
    assert len(numbers) == len(set(map(str, numbers)))
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        assert isinstance(place, dict)
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["type"] == "row" or panel["targets"]


def test_every_question_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    promtool = need_tool("promtool")
    rules = []
    for panel in panels():
        targets = panel.get("targets", [])
        assert isinstance(targets, list)
        for number, target in enumerate(targets):
            expression = re.sub(r"\$__rate_interval", "5m", target["expr"])
            rules.append({"record": f"question:{panel['id']}_{number}", "expr": expression})
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = run(promtool, "check", "rules", tmp_path / "rules.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


# ------------------------------------------------------------------------------------------------------------- systemd


def test_systemd_understands_every_line_of_the_unit(tmp_path: Path) -> None:
    analyze = need_tool("systemd-analyze")
    here = tmp_path / UNIT.name
    here.write_text(UNIT.read_text().replace("/opt/treehead/bin/tlogd", TLOGD[0]))
    done = run(analyze, "verify", "--man=no", here)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_is_locked_in(tmp_path: Path) -> None:
    analyze = need_tool("systemd-analyze")
    here = tmp_path / UNIT.name
    here.write_text(UNIT.read_text())
    threshold = f"--threshold={int(MOST_EXPOSED * 10)}"
    done = run(analyze, "security", "--offline=yes", "--no-pager", threshold, here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Overall exposure level" in done.stdout


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Type", "notify"),
        ("Restart", "on-failure"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("CapabilityBoundingSet", ""),
        ("LimitCORE", "0"),
        ("LimitNOFILE", str(MAX_CONNECTIONS + SPARE_FILES)),
    ],
)
def test_the_unit_says(name: str, value: str) -> None:
    assert settings(name) == [value]


def test_only_a_person_is_asked_where_a_restart_does_not_help() -> None:
    (codes,) = settings("RestartPreventExitStatus")
    assert set(map(int, codes.split())) == {Exit.USAGE, Exit.REFUSED, Exit.DAMAGED}
    assert Exit.STOPPED not in set(map(int, codes.split()))


def test_the_unit_waits_long_enough_for_a_graceful_stop() -> None:
    (seconds,) = settings("TimeoutStopSec")
    assert int(seconds) > 3 * SHUTDOWN_S
