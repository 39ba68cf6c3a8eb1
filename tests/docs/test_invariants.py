"""The table of invariants in tlog/DESIGN.md: each has tests, and each test that names one is in its row."""

from __future__ import annotations

import ast
import re
from collections import defaultdict

from tests.support.skips import CHECKOUT

TESTS = CHECKOUT / "tests"
TABLE = re.compile(r"^\| (I\d+) \| (.+) \| (.+) \| (.+) \|$", re.MULTILINE)
KNOWN = {f"I{number}" for number in range(1, 31)} - {"I25", "I26"}  # those concern several machines

ROWS = {
    name: (modules, files) for name, _, modules, files in TABLE.findall((CHECKOUT / "tlog" / "DESIGN.md").read_text())
}


def marked() -> dict[str, set[str]]:
    """Return the test modules that carry each name, by `pytest.mark.invariant` anywhere in them."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "invariant":
                for argument in node.args:
                    assert isinstance(argument, ast.Constant), path
                    found[str(argument.value)].add(str(path.relative_to(TESTS)))
    return found


def test_every_invariant_of_one_machine_has_a_row() -> None:
    assert set(ROWS) == KNOWN


def test_every_test_in_the_table_is_there_and_names_its_invariant() -> None:
    names = marked()
    for name, (_, files) in ROWS.items():
        for file in re.findall(r"`(\S+\.py)`", files):
            assert file in names[name], f"{file} does not try {name}"


def test_every_test_that_names_an_invariant_is_in_its_row() -> None:
    for name, files in marked().items():
        missing = files - set(re.findall(r"`(\S+\.py)`", ROWS[name][1]))
        assert not missing, f"the row of {name} lacks {sorted(missing)}"


def test_no_test_names_what_is_no_invariant() -> None:
    assert set(marked()) <= KNOWN


def test_every_module_in_the_table_is_there() -> None:
    for name, (modules, _) in ROWS.items():
        folders = ["client/tlog_client"] if modules.startswith("client:") else ["tlog", "tlog/server"]
        for module in re.findall(r"`([a-z_.]+)`", modules):
            paths = [CHECKOUT / folder / module.replace(".", "/") for folder in folders]
            assert any(path.is_dir() or path.with_suffix(".py").is_file() for path in paths), f"{name}: {module}"
