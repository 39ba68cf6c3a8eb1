"""A log over HTTP as values: what is asked, what an answer may look like, and what each status means."""

import json
from collections.abc import Mapping
from contextlib import suppress

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.lying_log import LyingLog, run_http
from tests.support.mutation import mutations
from tlog.cbor import encode
from tlog.errors import (
    CouldNotCheckError,
    FormatError,
    NotFoundError,
    PushbackError,
    RefusedError,
    UnavailableError,
    VerificationError,
)
from tlog.fetch import (
    MAX_ANSWER_SIZE,
    MAX_PROBLEM_SIZE,
    Answer,
    Request,
    Response,
    check,
    fetch_add,
    fetch_checkpoint,
    fetch_entry,
    over_http,
    parse_answer,
)
from tlog.merkle import MAX_SIZE
from tlog.note import MAX_NOTE_SIZE
from tlog.proof import TlogProof
from tlog.reader import TileCache, read_bundles, read_entries, read_hashes
from tlog.tile import MAX_BUNDLE_SIZE

ENTRIES = [b"entry %d" % number for number in range(600)]
ANSWER = Answer(7, b"\x07" * 32, (b"\x01" * 32, b"\x02" * 32), b"note\n")


def problem(status: int, value: object, headers: Mapping[str, str] | None = None) -> Response:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Response(status, headers or {}, body)


# ------------------------------------------------------------------------------------------------------------- status


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, NotFoundError),
        *((status, PushbackError) for status in (429, 503, 507)),
        *((status, RefusedError) for status in (400, 401, 403, 405, 409, 410, 411, 413, 415, 422, 428, 430, 451, 499)),
        *(
            (status, UnavailableError)
            for status in (408, 100, 199, 201, 202, 204, 206, 299, 301, 302, 304, 307, 308, 399)
        ),
        *((status, UnavailableError) for status in (500, 501, 502, 504, 505, 506, 508, 599, 600, 999, 0, -1)),
    ],
)
def test_a_status_is_one_error(status: int, error: type[CouldNotCheckError]) -> None:
    with pytest.raises(CouldNotCheckError, match=rf"^the log answered {status}$") as caught:
        check(Response(status, {}, b""))
    assert type(caught.value) is error
    if isinstance(caught.value, RefusedError):
        assert caught.value.status == status


def test_a_wanted_status_is_passed_on() -> None:
    for status, wanted in ((200, ()), (200, (200, 201)), (201, (200, 201)), (404, (404,))):
        response = Response(status, {}, b"body")
        assert check(response, *wanted) is response
    with pytest.raises(UnavailableError):
        check(Response(200, {}, b""), 201)


DETAILS: list[object] = [None, 7, ["x"], {"x": 1}, True]
OTHERS: list[object] = [{}, [], "text", 7, None, [{"detail": "x"}]]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"title": "Too large", "status": 413}, ": Too large"),
        ({"title": "Too large", "detail": "70000 bytes"}, ": 70000 bytes"),
        ({"detail": "é 名 “quoted”"}, ": é 名 “quoted”"),
        ({"detail": "a\x1b[31mred\x07\r\nnext\u202eevil\u2028\x9b\ud800"}, ": a[31mrednextevil"),
        ({"detail": "x" * 1000}, ": " + "x" * 300),
        ({"detail": ""}, ": "),
        *(({"detail": value, "title": "Title"}, "") for value in DETAILS),
        *((value, "") for value in OTHERS),
        *((value, "") for value in (b"", b"<html>", b"\xff\xfe", b'{"detail": "x"', b"[" * 60_000, b"1" * 10_000)),
        (b'{"detail": "' + b"x" * MAX_PROBLEM_SIZE + b'"}', ""),
        (b'{"detail": "x"}' + b" " * MAX_PROBLEM_SIZE, ": x"),
        (b'\xef\xbb\xbf{"detail": "x"}', ": x"),
    ],
)
def test_a_problem_is_told_in_printable_characters(value: object, said: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check(problem(400, value))
    assert str(caught.value) == f"the log answered 400{said}"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (encode({-1: "Too large", 7807: {0: "urn:x", 1: 413}}), ": Too large"),
        (encode({-1: "Too large", -2: "70000\x1b bytes"}), ": 70000 bytes"),
        (encode({-2: b"bytes"}), ""),
        (encode(["x"]), ""),
        (b'{"detail": "x"}', ""),
        (b"", ""),
        (b"\x81" * 60_000, ""),
    ],
)
def test_a_problem_in_cbor_is_told_too(body: bytes, said: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check(Response(400, {"content-type": "application/concise-problem-details+cbor"}, body))
    assert str(caught.value) == f"the log answered 400{said}"


@given(st.integers(0, 999), st.binary(max_size=80) | st.text(max_size=40), st.text(max_size=20))
def test_nothing_but_a_printable_error_comes_out_of_any_response(status: int, body: bytes | str, header: str) -> None:
    with suppress(CouldNotCheckError):
        check(problem(status, body if isinstance(body, bytes) else {"detail": body}, {"retry-after": header}), 1000)
    try:
        check(problem(status, body, {"retry-after": header}), 1000)
    except CouldNotCheckError as error:
        assert str(error).isprintable()  # noqa: PT017  # which error it is depends on the status
    else:
        pytest.fail("no error")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        *(("0", 0), ("1", 1), ("120", 120), (str(MAX_SIZE), MAX_SIZE)),
        *((text, None) for text in ("", "-1", "+1", "1.5", "01", "1_0", " 1", "٣", "\udcff", "\ud800", "9" * 30)),
        ("Fri, 31 Dec 1999 23:59:59 GMT", None),
    ],
)
def test_seconds_to_wait_are_a_decimal_or_unknown(header: str, seconds: int | None) -> None:
    for status in (429, 503, 507):
        with pytest.raises(PushbackError) as caught:
            check(Response(status, {"retry-after": header}, b""))
        assert caught.value.retry_after == seconds


def test_a_push_back_need_not_say_how_long() -> None:
    with pytest.raises(PushbackError) as caught:
        check(Response(429, {}, b""))
    assert caught.value.retry_after is None


# ------------------------------------------------------------------------------------------------------------ answers

hashes = st.lists(st.binary(min_size=32, max_size=32), max_size=5).map(tuple)
sizes = st.integers(0, MAX_SIZE)
answers = st.builds(
    Answer,
    sizes,
    st.binary(min_size=32, max_size=32),
    hashes,
    st.binary(max_size=30),
    st.none() | st.binary(max_size=30),
    st.none() | st.tuples(sizes, hashes),
)


def wire(**changes: object) -> bytes:
    """Write an answer of five parts, some of them changed; None leaves one out."""
    parts: dict[str, object] = {
        "index": 7,
        "leafHash": bytes(32),
        "proof": [bytes(32)],
        "checkpoint": b"note",
        "entry": b"e",
    }
    parts["consistency"] = {"from": 3, "proof": [bytes(32)]}
    kept = {key: value for key, value in (parts | changes).items() if value is not None}
    ordered = sorted(kept, key=cbor2.dumps)
    return cbor2.dumps({key: kept[key] for key in ordered})


@given(answers)
def test_every_answer_is_read_back(answer: Answer) -> None:
    assert parse_answer(answer.format()) == answer


@given(mutations(answers.map(Answer.format), b"\x00\x18\x40\x80\xa1\xf6\xf5\xff"))
def test_any_other_answer_is_a_format_error(data: bytes) -> None:
    with suppress(FormatError):
        assert parse_answer(data).format() == data


def test_an_answer_is_a_map_of_deterministic_cbor() -> None:
    full = Answer(7, bytes(32), (bytes(32),), b"note", b"e", (3, (bytes(32),)))
    assert full.format() == wire()
    assert parse_answer(wire()) == full
    assert parse_answer(wire(entry=None, consistency=None)) == Answer(7, bytes(32), (bytes(32),), b"note")
    assert ANSWER.tlog_proof() == TlogProof(7, ANSWER.proof, b"note\n")


@pytest.mark.parametrize("part", ["index", "leafHash", "proof", "checkpoint"])
def test_a_missing_part_is_refused(part: str) -> None:
    with pytest.raises(FormatError):
        parse_answer(wire(**{part: None}))


LONG = [bytes(32)] * 127
WRONG: dict[str, list[object]] = {
    "index": [-1, MAX_SIZE + 1, True, False, b"7", "7", [7], {}],
    "leafHash": [bytes(31), bytes(33), b"", "0" * 32, 7, []],
    "proof": [
        *(b"", bytes(32), {}, 0, True, [bytes(31)], [bytes(33)], ["0" * 32], [0], [[]], [True], LONG),
        *([bytes(32), "x"], [bytes(32), bytes(31)]),
    ],
    "checkpoint": ["note", 7, [], {}, False],
    "entry": ["e", 7, [], {}, False],
    "consistency": [
        *(7, [], b"", {}, {"from": 3}, {"proof": []}, [3, []], False, {"from": 3, "proof": [], "more": 0}),
        *({"from": -1, "proof": []}, {"from": True, "proof": []}, {"from": MAX_SIZE + 1, "proof": []}),
        *({"from": b"3", "proof": []}, {"from": "3", "proof": []}, {"from": 3, "proof": [bytes(31)]}),
        *({"from": 3, "proof": LONG}, {"from": 3, "proof": b""}, {"from": 3, "proof": 0}),
    ],
    "more": [0, {}],
    "Index": [7],
    "1": [0],
}


@pytest.mark.parametrize("part", WRONG)
def test_a_part_of_another_type_or_length_or_name_is_refused(part: str) -> None:
    for value in WRONG[part]:
        with pytest.raises(FormatError):
            parse_answer(wire(**{part: value}))


def test_null_does_not_stand_for_a_part_that_is_absent() -> None:
    for key in ("entry", "consistency"):
        with pytest.raises(FormatError):
            parse_answer(encode({"index": 7, "leafHash": bytes(32), "proof": [], "checkpoint": b"note", key: None}))


@pytest.mark.parametrize(
    "data", [b"", b"\x00", b"\x80", b"\xa0", b"\xf6", wire() + b"\x00", wire()[:-1], b"\xa1\x00\x00"]
)
def test_what_is_not_an_answer_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_answer(data)


def test_the_largest_proofs_are_read_and_fit_into_an_answer() -> None:
    most = (bytes(32),) * 63
    largest = Answer(MAX_SIZE, bytes(32), most, bytes(MAX_NOTE_SIZE), bytes(65_535), (MAX_SIZE, (*most, bytes(32))))
    assert parse_answer(largest.format()) == largest
    assert len(largest.format()) <= MAX_ANSWER_SIZE


# -------------------------------------------------------------------------------------------------------------- flows


def test_the_checkpoint_is_fetched_as_it_is() -> None:
    flow = fetch_checkpoint()
    assert next(flow) == [Request("GET", "checkpoint", max_size=MAX_NOTE_SIZE)]
    with pytest.raises(StopIteration) as done:
        flow.send([Response(200, {}, b"any bytes")])
    assert done.value.value == b"any bytes"
    with pytest.raises(NotFoundError):
        run_http(fetch_checkpoint(), lambda _: [Response(404, {}, b"")])


def test_an_entry_is_added_with_the_size_that_the_client_has() -> None:
    asked: list[Request] = []

    def respond(requests: list[Request]) -> list[Response]:
        asked.extend(requests)
        return [Response(201 if len(asked) == 1 else 200, {}, ANSWER.format())]

    assert run_http(fetch_add(b"entry"), respond) == (ANSWER, True)
    assert run_http(fetch_add(b"", have=300), respond) == (ANSWER, False)
    headers = (("Accept", "application/cbor"), ("Content-Type", "application/octet-stream"))
    assert asked == [
        Request("POST", "v1/entries", headers, b"entry", MAX_ANSWER_SIZE),
        Request("POST", "v1/entries", (*headers, ("Treehead-Have", "300")), b"", MAX_ANSWER_SIZE),
    ]


def test_an_entry_is_fetched_by_its_index() -> None:
    asked: list[Request] = []

    def respond(requests: list[Request]) -> list[Response]:
        asked.extend(requests)
        return [Response(200, {}, ANSWER.format())]

    assert run_http(fetch_entry(7), respond) == ANSWER
    assert asked == [Request("GET", "v1/entries/7", (("Accept", "application/cbor"),), max_size=MAX_ANSWER_SIZE)]
    with pytest.raises(UnavailableError):
        run_http(fetch_entry(7), lambda _: [Response(201, {}, ANSWER.format())])
    with pytest.raises(FormatError):
        run_http(fetch_add(b""), lambda _: [Response(200, {}, b"junk")])


# ------------------------------------------------------------------------------------------------- tiles and bundles


def test_tiles_and_bundles_are_read_over_http_side_by_side() -> None:
    log = LyingLog(ENTRIES)
    rounds: list[list[Request]] = []

    def respond(requests: list[Request]) -> list[Response]:
        rounds.append(requests)
        return log.respond(requests)

    assert run_http(over_http(read_entries(log.head(), 250, 600)), respond) == ENTRIES[250:600]
    tiles = [Request("GET", f"tile/{path}", max_size=8192) for path in ("1/000.p/2", "0/000", "0/001", "0/002.p/88")]
    bundles = [Request("GET", f"tile/entries/{path}", max_size=MAX_BUNDLE_SIZE) for path in ("000", "001", "002.p/88")]
    assert rounds == [bundles, tiles]


def test_a_partial_one_that_is_gone_is_cut_from_the_full_one() -> None:
    log = LyingLog(ENTRIES)
    log.keeps_partials = False
    cache = TileCache()
    assert run_http(over_http(read_entries(log.head(300), 0, 300, cache)), log.respond) == ENTRIES[:300]
    asked = ["entries/000", "entries/001.p/44", "entries/001", "1/000.p/1", "0/000", "0/001.p/44", "0/001"]
    assert sorted(set(log.asked)) == sorted(f"tile/{path}" for path in asked)
    assert run_http(over_http(read_bundles(290, 300, 300)), log.respond) == ENTRIES[290:300]
    assert run_http(over_http(read_hashes(log.head(300), [(0, 299)], cache)), log.respond) == [log.tree.mth(299, 300)]
    assert cache.get(next(tile for tile in cache._tiles)) is not None
    assert [tile.path for tile in cache._tiles] == ["tile/0/000"]


@pytest.mark.parametrize("path", ["tile/0/001", "tile/entries/001", "tile/0/000", "tile/entries/000"])
@pytest.mark.parametrize("change", ["flip", "cut", "empty"])
def test_a_lie_in_the_full_one_is_refused(path: str, change: str) -> None:
    log = LyingLog(ENTRIES)
    log.keeps_partials = False
    changes = {"flip": lambda data: b"\xff" + data[1:], "cut": lambda data: data[:100], "empty": lambda _: b""}
    log.lie(path, changes[change])
    with pytest.raises((FormatError, VerificationError)):
        run_http(over_http(read_entries(log.head(300), 0, 300, TileCache())), log.respond)


def test_what_is_gone_altogether_is_not_found() -> None:
    log = LyingLog(ENTRIES)

    def without(*gone: str) -> None:
        def respond(requests: list[Request]) -> list[Response]:
            answers_ = log.respond(requests)
            return [
                Response(404, {}, b"") if request.path in gone else answer
                for request, answer in zip(requests, answers_, strict=True)
            ]

        with pytest.raises(NotFoundError):
            run_http(over_http(read_entries(log.head(300), 0, 300)), respond)

    without("tile/0/000")
    without("tile/entries/000")
    without("tile/0/001.p/44", "tile/0/001")
    without("tile/entries/001.p/44", "tile/entries/001")
    without("tile/1/000.p/1", "tile/1/000")


def test_a_full_one_that_is_gone_is_asked_for_once() -> None:
    asked: list[str] = []

    def respond(requests: list[Request]) -> list[Response]:
        asked.extend(request.path for request in requests)
        return [Response(404, {}, b"") for _ in requests]

    with pytest.raises(NotFoundError):
        run_http(over_http(read_bundles(0, 300, 300)), respond)
    assert asked == ["tile/entries/000", "tile/entries/001.p/44", "tile/entries/001"]


@pytest.mark.parametrize(("status", "error"), [(500, UnavailableError), (429, PushbackError), (302, UnavailableError)])
def test_another_status_is_an_error_and_no_reason_to_ask_for_the_full_one(
    status: int, error: type[CouldNotCheckError]
) -> None:
    rounds: list[list[Request]] = []

    def respond(requests: list[Request]) -> list[Response]:
        rounds.append(requests)
        return [Response(status, {}, b"") for _ in requests]

    with pytest.raises(error):
        run_http(over_http(read_hashes(LyingLog(ENTRIES).head(300), [])), respond)
    assert len(rounds) == 1


def test_a_flow_that_asks_for_nothing_sends_nothing() -> None:
    def respond(_: list[Request]) -> list[Response]:
        pytest.fail("asked")

    assert run_http(over_http(read_bundles(0, 0, 0)), respond) == []
