"""The judge is judged: it must be able to say "lost"."""

from __future__ import annotations

import pytest

from tests.acceptance.mirror.oracle import Loss, Oracle
from tests.acceptance.mirror.programs.stamps import number_in, stamp

FLUSHED = ["i 1 0 1.0", "a 1 1.1", "f 1 1.2", "F 1 1.4"]


def content(*numbers: int) -> list[str]:
    """One block, its eight sectors."""
    return [" ".join(str(number) for number in (numbers * 8)[:8])]


def after(*lines: str) -> Oracle:
    oracle = Oracle()
    oracle.learn([*FLUSHED, *lines])
    return oracle


def test_what_a_flush_covered_must_be_there() -> None:
    assert after().losses(content(1)) == []
    assert len(after().losses(content(0))) == 8


def test_a_flush_covers_nothing_that_was_answered_after_it_was_issued() -> None:
    oracle = Oracle()
    oracle.learn(["i 1 0 1.0", "f 1 1.1", "a 1 1.2", "F 1 1.3"])
    assert oracle.losses(content(0)) == []


def test_a_flush_without_an_answer_covers_nothing() -> None:
    assert after("i 2 0 2.0", "a 2 2.1", "f 2 2.2").losses(content(1)) == []


def test_an_older_write_over_a_flushed_one_is_a_loss() -> None:
    oracle = after("i 2 0 2.0", "a 2 2.1", "f 2 2.2", "F 2 2.3")
    assert oracle.losses(content(2, 2, 2, 2, 2, 1, 2, 2)) == [Loss(0, 5, 1, 2)]


def test_a_write_under_way_may_have_reached_some_sectors_and_not_others() -> None:
    assert after("i 2 0 2.0").losses(content(1, 2)) == []


def test_what_nobody_wrote_is_a_loss_even_where_nothing_was_promised() -> None:
    assert len(Oracle().losses(content(-1))) == 8
    assert len(after().losses(content(7))) == 8


def test_a_second_client_goes_on_where_the_first_was_cut_off() -> None:
    oracle = after("i 2 0 2.0", "a 2 2")
    oracle.learn(["i 3 0 3.0", "a 3 3.1", "f 1 3.2", "F 1 3.3", "i 4"])
    assert oracle.next_number == 4
    assert oracle.losses(content(3)) == []
    assert oracle.losses(content(2))


def test_how_long_a_client_waited_is_told() -> None:
    oracle = after("i 2 0 2.0", "a 2 3.5", "i 3 0 4.0")
    assert oracle.longest_wait_s() == 1.5
    assert oracle.unanswered == 1


def test_a_stamp_tells_its_write_only_where_it_belongs() -> None:
    assert number_in(stamp(7, 3, 2), 3, 2) == 7
    assert number_in(bytes(512), 3, 2) == 0


@pytest.mark.parametrize(("block", "sector", "spoilt"), [(4, 2, 511), (3, 1, 511), (3, 2, 0), (3, 2, 16), (3, 2, 510)])
def test_a_stamp_in_a_wrong_place_or_with_a_spoilt_byte_is_found_out(block: int, sector: int, spoilt: int) -> None:
    piece = bytearray(stamp(7, 3, 2))
    piece[spoilt] ^= spoilt != 511
    assert number_in(bytes(piece), block, sector) == -1
