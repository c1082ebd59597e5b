from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.supervision.trace import Trace

identity = st.tuples(st.integers(2, 4_194_304), st.integers(0, 2**60))


@given(st.none() | identity, st.none() | identity, st.frozensets(identity), st.frozensets(identity))
def test_a_trace_survives_the_record(
    leader: tuple[int, int] | None,
    pidfile: tuple[int, int] | None,
    named: frozenset[tuple[int, int]],
    members: frozenset[tuple[int, int]],
) -> None:
    trace = Trace("token", leader, pidfile, named, members)
    assert vars(Trace.of_pairs(trace.pairs())) == vars(trace)


@pytest.mark.parametrize("text", ["", "x", "12", "1 5", "0 5", "-3 5", "12 x", "12 3 4", "² 5", ",,,"])
def test_what_does_not_parse_counts_as_not_written(text: str) -> None:
    trace = Trace.of_pairs({"leader": text, "pidfile": text, "named": text, "members": text})
    assert not trace.is_started
    assert not trace.seen
