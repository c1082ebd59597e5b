from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.supervision.escalation import SignalName, plan, signal_limit


def test_a_minute_gives_the_script_forty_seconds_and_leaves_time_for_the_rest() -> None:
    limits = plan(60, 48, 0, 5)
    assert limits.script_s == pytest.approx(40)
    assert signal_limit(limits, 8) == pytest.approx(7)
    assert limits.kill_s == 5


def test_a_polite_end_may_take_two_thirds_of_the_time_out_when_there_is_no_script() -> None:
    assert signal_limit(plan(60, 48, 0, 5), 48) == pytest.approx(40)


def test_the_configured_wait_is_kept_when_time_allows() -> None:
    assert signal_limit(plan(60, 48, 3, 5), 48) == 3


durations = st.floats(0, 3600)


@given(timeout=durations, left=durations, stop=durations, kill=durations, used=st.floats(0, 1))
def test_sigkill_always_keeps_a_share_of_the_time(
    timeout: float, left: float, stop: float, kill: float, used: float
) -> None:
    limits = plan(timeout, left, stop, kill)
    rest = left - limits.script_s * used
    signal_s = signal_limit(limits, rest)
    assert limits.script_s >= 0
    assert 0 <= signal_s <= rest
    assert rest - signal_s >= min(kill, rest / 8) - 1e-6


@pytest.mark.parametrize(("text", "number"), [("TERM", 15), ("sigint", 2), ("9", 9), ("USR1", 10)])
def test_signals_have_names_and_numbers(text: str, number: int) -> None:
    assert SignalName("x").convert(text) == number


@pytest.mark.parametrize("text", ["", "NONE", "0", "99", "_DFL", "-9", "²"])
def test_what_is_no_signal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a signal"):
        SignalName("x").convert(text)
