"""The second path to the root, against the RFC's definition."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.rfc6962 import Tree
from tests.support.static import framed
from tests.support.writing import leaves
from tlog.errors import VerificationError
from tlog.server.recount import Recount

pytestmark = pytest.mark.invariant("I1")

EMPTY = Recount(0, ())


@given(st.lists(st.lists(st.binary(max_size=50), max_size=40), max_size=8))
def test_roots_and_digests_are_those_of_the_rfc(batches: list[list[bytes]]) -> None:
    recount, entries = EMPTY, list[bytes]()
    for batch in batches:
        recount, digest = recount.add(framed(batch))
        entries += batch
        assert digest == sha256(b"".join(leaves(batch))).digest()
        assert (recount.size, recount.root()) == (len(entries), Tree(entries).mth(0, len(entries)))


def test_every_size_up_to_300_has_the_root_of_the_rfc_one_by_one_and_at_once() -> None:
    tree = Tree([b"%d" % number for number in range(300)])
    one_by_one = EMPTY
    for size in range(1, 301):
        one_by_one, _ = one_by_one.add(framed([tree.entries[size - 1]]))
        assert one_by_one.root() == tree.mth(0, size)
        assert EMPTY.add(framed(list(tree.entries[:size])))[0] == one_by_one


def test_the_empty_tree_has_the_empty_root() -> None:
    assert EMPTY.root() == sha256().digest()
    assert EMPTY.add(b"") == (EMPTY, sha256().digest())


def test_the_longest_entry_is_counted() -> None:
    entry = bytes(65_535)
    assert EMPTY.add(framed([entry, b""]))[0].root() == Tree([entry, b""]).mth(0, 2)


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=9), st.data())
def test_entries_that_are_cut_off_are_refused_or_are_fewer(entries: list[bytes], data: st.DataObject) -> None:
    whole = framed(entries)
    ends = {len(framed(entries[:count])): count for count in range(len(entries) + 1)}
    cut = data.draw(st.integers(0, len(whole) - 1))
    if cut in ends:
        assert EMPTY.add(whole[:cut])[0].size == ends[cut]
        return
    with pytest.raises(VerificationError, match="ends within an entry"):
        EMPTY.add(whole[:cut])


def test_counting_leaves_the_count_before_as_it_was() -> None:
    before, _ = EMPTY.add(framed([b"a", b"b", b"c"]))
    stack = before.stack
    before.add(framed([b"d"]))
    assert before.stack == stack
