from __future__ import annotations

import pytest

from tests.bench.rows import Bound, row, table


def test_a_ratio_is_ours_over_theirs_of_the_medians() -> None:
    made = row("agent/x", "ms", [9, 10, 11, 500], "peer", [20, 21, 22, 23], bar=0.5)
    assert (made.ours, made.theirs, made.ratio) == (10.5, 21.5, 0.488)
    assert made.holds


def test_a_missed_bar_is_shouted() -> None:
    made = row("agent/x", "ms", [10, 10, 10, 10], "peer", [12, 12, 12, 12], bar=0.5)
    assert not made.holds
    assert "MISSED" in table([made])


def test_a_rate_misses_its_bar_from_below() -> None:
    slow = row("mirror/x", "IOPS", [19, 19, 19, 19], "peer", [10, 10, 10, 10], 2.0, Bound.AT_LEAST)
    fast = row("mirror/x", "IOPS", [21, 21, 21, 21], "peer", [10, 10, 10, 10], 2.0, Bound.AT_LEAST)
    assert not slow.holds
    assert "≥ 2.00" in table([slow])
    assert "MISSED" in table([slow])
    assert fast.holds


def test_a_row_without_a_bar_holds_whatever_it_says() -> None:
    assert row("agent/x", "ms", [50, 50, 50, 50], "peer", [1, 1, 1, 1], bar=None).holds


def test_series_that_were_not_measured_in_turn_are_refused() -> None:
    with pytest.raises(ValueError, match="5 measurements of ours against 4"):
        row("agent/x", "ms", [1, 1, 1, 1, 1], "peer", [1, 1, 1, 1], bar=None)


def test_the_report_carries_the_promised_fields() -> None:
    made = row("agent/x", "ms", [1, 2, 3, 4], "peer", [1, 2, 3, 4], bar=1.0).as_json()
    assert {"case", "unit", "ours", "peer", "theirs", "ratio", "runs", "spread"} <= set(made)
