"""What a check has found, as JSON: for a report, and for what is kept between two runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tlog.damage import Checked, Damage, Unread
from tlog.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping


def damage_fields(damage: Damage) -> dict[str, object]:
    """Return damage as a JSON object, hashes in hexadecimal."""
    return {
        "path": damage.path,
        "start": damage.start,
        "end": damage.end,
        "wrong": list(damage.wrong),
        "expected": damage.expected.hex(),
        "found": damage.found.hex(),
        "reason": damage.reason,
    }


def unread_fields(unread: Unread) -> dict[str, object]:
    """Return what could not be read as a JSON object."""
    return {"path": unread.path, "reason": unread.reason}


def format_checked(number: int, checked: Checked) -> str:
    """Write the result of a range that was read in full."""
    fields = {
        "number": number,
        "root": checked.root.hex() if checked.root is not None else None,
        "damage": [damage_fields(damage) for damage in checked.damage],
        "damaged": checked.damaged,
    }
    return json.dumps(fields)


def parse_checked(text: str) -> tuple[int, Checked]:
    """Parse the result of a range: its number, and what was found.

    Raises:
        FormatError: It is something else.
    """
    try:
        fields = json.loads(text)
        root = fields["root"]
        damage = tuple(map(_damage, fields["damage"]))
        checked = Checked(bytes.fromhex(root) if root is not None else None, damage, fields["damaged"])
        number = fields["number"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise FormatError("not the result of a range") from error
    if not isinstance(number, int) or not isinstance(checked.damaged, int):
        raise FormatError("not the result of a range")
    return number, checked


def _damage(fields: Mapping[str, object]) -> Damage:
    match fields:
        case {
            "path": str(path),
            "start": int(start),
            "end": int(end),
            "wrong": list(wrong),
            "expected": str(expected),
            "found": str(found),
            "reason": str(reason),
        }:
            return Damage(path, start, end, tuple(wrong), bytes.fromhex(expected), bytes.fromhex(found), reason)
        case _:
            raise FormatError("not damage")
