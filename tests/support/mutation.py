"""Well-formed bytes, broken a little: what parsers are fed."""

from hypothesis import strategies as st


def flip(data: bytes, bit: int) -> bytes:
    """Return the data with one bit flipped; the bit counts from the front, or from the end when negative."""
    at = bit % (8 * len(data))
    return data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]


@st.composite
def mutations(draw: st.DrawFn, valid: st.SearchStrategy[bytes], alphabet: bytes = b"\n 0+-=A\xff\x00") -> bytes:
    """Draw valid bytes and cut, double, overwrite or insert in up to three places; sometimes nothing is changed."""
    data = draw(valid)
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 5)))
        fresh = draw(st.lists(st.sampled_from(alphabet), max_size=3).map(bytes))
        data = draw(
            st.sampled_from(
                [
                    data[:start] + fresh + data[end:],
                    data[:start] + data[start:end] * 2 + data[end:],
                    data[:start] + fresh + data[start:],
                    data[:start],
                ]
            )
        )
    return data
