from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agents.mounts.schedule import ASK, GIVE_UP, KILL, Schedule


def test_two_thirds_of_the_time_are_for_sigterm_and_one_third_for_sigkill() -> None:
    schedule = Schedule(48, is_fast=False)
    assert [schedule.stage(passed) for passed in (0, 31.9, 32, 47.9, 48)] == [ASK, ASK, KILL, KILL, GIVE_UP]


def test_a_fast_stop_takes_six_seconds_or_less() -> None:
    schedule = Schedule(48, is_fast=True)
    assert [schedule.stage(passed) for passed in (3.9, 4, 5.9, 6)] == [ASK, KILL, KILL, GIVE_UP]
    assert Schedule(3, is_fast=True).end_at_s == 3


@given(limit=st.floats(0, 3600), share=st.floats(0, 1), fast=st.booleans())
def test_no_pause_oversleeps_the_next_stage(limit: float, share: float, fast: bool) -> None:
    schedule = Schedule(limit, is_fast=fast)
    passed = schedule.end_at_s * share
    pause = schedule.pause_s(passed)
    assert 0 <= pause <= 1
    assert passed >= schedule.kill_at_s or passed + pause <= schedule.kill_at_s + 1e-9
