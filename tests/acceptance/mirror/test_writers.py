"""The judges of the power cuts: what they would say if something acknowledged were lost."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.acceptance.mirror.pair import PROGRAMS
from tests.acceptance.mirror.writers import BLOCKS, SQLITE, Application

RECORDS = 30


def command(application: Application, *arguments: str) -> list[str]:
    return ["/usr/bin/python3", "-I", str(PROGRAMS / application.program), *arguments]


def write(application: Application, place: Path) -> int:
    """Until it is killed in the middle of something; the last record acknowledged."""
    with subprocess.Popen(command(application, "write", str(place)), stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        numbers = [int(writer.stdout.readline()) for _ in range(RECORDS)]
        writer.kill()
        numbers += [int(line) for line in writer.stdout.read().splitlines()]
    assert numbers == list(range(1, numbers[-1] + 1)), "records are numbered from 1, without a gap"
    return numbers[-1]


def check(application: Application, place: Path, last: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(application, "check", str(place), str(last)), capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("application", [BLOCKS, SQLITE], ids=lambda application: application.name)
def test_a_writer_that_was_killed_left_all_that_was_acknowledged_and_no_more_is_believed(
    application: Application, tmp_path: Path
) -> None:
    place = tmp_path / application.place
    last = write(application, place)
    assert check(application, place, last).returncode == 0
    later = check(application, place, last + 5)
    assert later.returncode == 1
    assert "was acknowledged" in later.stderr


def test_one_sector_of_an_older_batch_is_found(tmp_path: Path) -> None:
    place = tmp_path / "blocks"
    last = write(BLOCKS, place)
    with place.open("r+b") as file:
        content = file.read()
        older = next(at for at in range(0, len(content), 512) if content[at] == last - 1)
        file.seek(older)
        file.write(b"\0" * 512)
    result = check(BLOCKS, place, last)
    assert result.returncode == 1
    assert f"sector {older // 512}: batch {last - 1} was acknowledged" in result.stderr


def test_a_row_with_another_content_is_found(tmp_path: Path) -> None:
    place = tmp_path / "rows.sqlite"
    last = write(SQLITE, place)
    subprocess.run(["sqlite3", str(place), "UPDATE record SET content = x'00' WHERE number = 7"], check=True)
    result = check(SQLITE, place, last)
    assert result.returncode == 1
    assert result.stderr.strip() == "row 7 has another content"
