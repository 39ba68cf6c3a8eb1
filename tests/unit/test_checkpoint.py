"""Checkpoints: the rules of tlog-checkpoint and the cases of other implementations."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.mutation import mutations
from tests.support.skips import vectors
from tlog.checkpoint import Checkpoint, parse_checkpoint, parse_origin
from tlog.errors import FormatError
from tlog.merkle import EMPTY_ROOT, MAX_SIZE, leaf_hash

ROOT = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="

lines = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=60)
checkpoints = st.builds(
    Checkpoint,
    lines,
    st.integers(0, MAX_SIZE),
    st.binary(min_size=32, max_size=32),
    st.lists(lines, max_size=3).map(tuple),
)


def refused(text: bytes) -> None:
    for extensions in (False, True):
        with pytest.raises(FormatError):
            parse_checkpoint(text, extensions=extensions)


@given(checkpoints)
def test_every_checkpoint_is_read_back(checkpoint: Checkpoint) -> None:
    text = checkpoint.format()
    assert parse_checkpoint(text, extensions=True) == checkpoint
    if checkpoint.extensions:
        with pytest.raises(FormatError, match="extension lines"):
            parse_checkpoint(text)
    else:
        assert parse_checkpoint(text) == checkpoint


@given(mutations(checkpoints.map(Checkpoint.format)), st.booleans())
def test_any_other_text_is_a_format_error(text: bytes, extensions: bool) -> None:  # noqa: FBT001  # drawn
    with suppress(FormatError):
        assert parse_checkpoint(text, extensions=extensions).format() == text


def test_a_checkpoint_is_three_lines() -> None:
    assert Checkpoint("log.example", 0, EMPTY_ROOT).format() == f"log.example\n0\n{ROOT}\n".encode()
    assert Checkpoint("o", 7, EMPTY_ROOT, ("a b", "c")).format() == f"o\n7\n{ROOT}\na b\nc\n".encode()


@pytest.mark.parametrize(
    "text",
    [
        *("", "\n", "log\n", "log\n1\n", f"log\n1\n{ROOT}", f"log\n1\n{ROOT}\n\n", f"log\n1\n\n{ROOT}\n"),
        *(f"\n1\n{ROOT}\n", f"log\n1\n{ROOT}\n\nextension\n"),
        *(f"log\n01\n{ROOT}\n", f"log\n+1\n{ROOT}\n", f"log\n-1\n{ROOT}\n", f"log\n1 \n{ROOT}\n", f"log\n٣\n{ROOT}\n"),
        *(f"log\n1_0\n{ROOT}\n", f"log\n{MAX_SIZE + 1}\n{ROOT}\n", f"log\n1\n{ROOT[:-1]}\n", f"log\n1\n{ROOT} \n"),
        *("log\n1\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFV=\n", "log\n1\n47DE\n", f"log\n1\nAAAA{ROOT}\n"),
        *(f"log\r\n1\r\n{ROOT}\r\n", f"lo\x00g\n1\n{ROOT}\n", f"log\n1\n{ROOT}\nextension\n\n"),
    ],
)  # fmt: skip
def test_another_spelling_is_refused(text: str) -> None:
    refused(text.encode())


@pytest.mark.parametrize("line", [b"", b"a" * 256, b"\xff", b"two\nlines", b"tab\t", b"\n", b"a\n"])
def test_an_origin_is_one_line_of_text(line: bytes) -> None:
    with pytest.raises(FormatError):
        parse_origin(line)


@given(st.binary(max_size=300))
def test_an_origin_is_read_as_it_stands(line: bytes) -> None:
    with suppress(FormatError):
        assert parse_origin(line).encode() == line


def test_the_cases_of_transparency_dev_are_all_refused() -> None:
    """Lenient elsewhere: go_ok cases there have roots that are not of 32 bytes, or empty extension lines."""
    for case in json.loads((vectors("checkpoint") / "body_cases.json").read_text())["unmarshal_cases"]:
        assert not case["go_formats_ok"] or case["tlog_checkpoint_spec"]
        refused(case["text"].encode())


def test_an_origin_has_1_to_255_bytes() -> None:
    for case in json.loads((vectors("checkpoint") / "body_cases.json").read_text())["origin_length_cases"]:
        text = case["text"].encode()
        if case["ok"]:
            assert parse_checkpoint(text, extensions=True).extensions == ("extension",)
        else:
            refused(text)


def test_the_tree_text_of_go() -> None:
    case = json.loads((vectors("checkpoint") / "body_cases.json").read_text())["go_tree"]
    assert parse_checkpoint(case["text"].encode()) == Checkpoint(
        "go.sum database tree", case["size"], leaf_hash(case["record"].encode())
    )
    for text in case["bad"]:
        refused(text.encode())
