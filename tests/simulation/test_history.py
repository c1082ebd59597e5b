"""The oracle: what a sector may hold after answers, flushes and power cuts."""

from __future__ import annotations

from tests.simulation.history import INITIAL, ZEROES, Line, stamped, version_of

SECTORS = range(8, 16)


def content(version: int, sector: int = 8) -> bytes:
    return ZEROES if version == INITIAL else stamped(version, sector * 512, 512)


def allowed(line: Line, *versions: int) -> list[int]:
    return [version for version in versions if not line.objection(8, content(version))]


def test_a_stamp_says_which_version_of_which_sector_it_is() -> None:
    payload = stamped(5, 8 * 512, 4096)
    assert [version_of(sector, payload[at * 512 : at * 512 + 512]) for at, sector in enumerate(SECTORS)] == [5] * 8
    assert version_of(9, payload[:512]) is None
    assert version_of(8, payload[:256] + bytes(256)) is None


def test_before_its_answer_a_write_may_be_there_or_not() -> None:
    line = Line(set())
    line.submitted(1, SECTORS)
    assert allowed(line, INITIAL, 1, 2) == [INITIAL, 1]


def test_after_its_answer_it_is_there() -> None:
    line = Line(set())
    line.submitted(1, SECTORS)
    line.acknowledged(1, SECTORS)
    assert allowed(line, INITIAL, 1) == [1]


def test_a_power_cut_may_take_what_no_flush_has_covered() -> None:
    line = Line(set())
    for version in (1, 2):
        line.submitted(version, SECTORS)
        line.acknowledged(version, SECTORS)
        if version == 1:
            line.flushed(line.to_be_flushed())
    line.lost_power()
    assert allowed(line, INITIAL, 1, 2) == [1, 2]


def test_a_flush_covers_what_was_answered_before_it_began() -> None:
    line = Line(set())
    line.submitted(1, SECTORS)
    line.acknowledged(1, SECTORS)
    covered = line.to_be_flushed()
    line.submitted(2, SECTORS)
    line.acknowledged(2, SECTORS)
    line.flushed(covered)
    line.lost_power()
    assert allowed(line, INITIAL, 1, 2) == [1, 2]


def test_trimmed_sectors_read_as_zeroes() -> None:
    zeroing = {3}
    line = Line(zeroing)
    for version in (1, 3):
        line.submitted(version, SECTORS)
        line.acknowledged(version, SECTORS)
    assert allowed(line, INITIAL, 1) == [INITIAL]
