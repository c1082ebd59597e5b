from __future__ import annotations

import copy
from typing import Any

import pytest

from agents.mirroring.answer import Answer
from agents.mirroring.score import NOT_ELIGIBLE, score
from agents.mirroring.view import View

STATUS: dict[str, Any] = {
    "role": "Secondary",
    "devices": [{"disk-state": "UpToDate", "device": None}],
    "connections": [{"connection-state": "Connected", "peer-role": "Secondary"}],
    "mirror": {"eligible": True, "reason": None, "remedy": None, "cs": "Connected"},
}


def view(**changes: Any) -> View:
    """A standby in sync, with `role`, `disk`, `device`, `connection`, `peer_role`, or anything of "mirror" changed."""
    status = copy.deepcopy(STATUS)
    for name, value in changes.items():
        match name:
            case "role":
                status["role"] = value
            case "disk" | "device":
                status["devices"][0]["disk-state" if name == "disk" else "device"] = value
            case "connection" | "peer_role":
                status["connections"][0]["connection-state" if name == "connection" else "peer-role"] = value
            case _:
                status["mirror"][name] = value
    return View.of(status)


PROMOTED = {"role": "Primary", "device": "/dev/loop0"}


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("1000", {}),
        ("10000", PROMOTED),
        ("-INFINITY", {"eligible": False, "peer_role": "Primary"}),
        ("-INFINITY", {"eligible": False, "disk": "Inconsistent"}),
        ("-INFINITY", {"eligible": False, "connection": "Connecting"}),
        ("1000", {"connection": "Connecting"}),
        ("100", {"disk": "Outdated", "connection": "Connecting"}),
        ("-INFINITY", {"role": "Primary", "device": None}),
        ("-INFINITY", PROMOTED | {"disk": "Diskless"}),
        ("10000", PROMOTED | {"connection": "Connecting"}),
    ],
)
def test_the_score_is_what_mirrord_says_of_itself(expected: str, changes: dict[str, Any]) -> None:
    assert score(view(**changes)) == expected


def test_nobody_has_a_higher_score_than_the_promoted_side() -> None:
    promoted = int(score(view(**PROMOTED)))
    for disk in ("UpToDate", "Consistent", "Outdated"):
        for connection in ("Connected", "Connecting", "StandAlone"):
            assert int(score(view(disk=disk, connection=connection))) < promoted


def test_silence_is_never_said_for_not_eligible() -> None:
    assert NOT_ELIGIBLE == "-INFINITY"


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        ("", PROMOTED),
        ("", PROMOTED | {"connection": "StandAlone", "reason": "split brain"}),
        ("its device is gone", {"role": "Primary"}),
        ("the disk failed: EIO; replace it", PROMOTED | {"disk": "Diskless", "reason": "the disk failed: EIO",
                                                         "remedy": "replace it"}),
        ("the disk is Failed", PROMOTED | {"disk": "Failed"}),
    ],
)  # fmt: skip
def test_a_primary_without_device_or_disk_serves_nobody(expected: str, changes: dict[str, Any]) -> None:
    assert view(**changes).fault_of_promoted == expected


@pytest.mark.parametrize(
    ("expected", "changes"),
    [
        (True, {"peer_role": "Primary"}),
        (True, {"peer_role": "Unknown"}),
        (True, {"connection": "Connecting", "cs": "WFReportParams"}),
        (False, {"connection": "Connecting", "cs": "WFConnection"}),
        (False, {"connection": "StandAlone", "cs": "StandAlone"}),
        (False, {"disk": "Outdated"}),
    ],
)
def test_only_what_is_under_way_is_worth_asking_again(expected: bool, changes: dict[str, Any]) -> None:
    assert view(**changes).may_be_promoted_in_a_moment is expected


@pytest.mark.parametrize("missing", ["role", "devices", "connections", "mirror"])
def test_a_status_of_another_shape_is_not_guessed_at(missing: str) -> None:
    with pytest.raises(ValueError, match="status without"):
        View.of({key: value for key, value in STATUS.items() if key != missing})


def test_the_words_of_mirroradm_are_the_reason() -> None:
    said = "mirroradm: warning: x\nmirroradm: mirror r0: not promoted: peer alpha is Primary; demote it\n"
    answer = Answer(11, said)
    assert answer.fact == "mirror r0: not promoted: peer alpha is Primary; demote it"
    assert answer.is_refusal
    assert not answer.is_silence
    assert Answer(20, "").is_silence
    assert Answer(-9, "").is_silence
    assert Answer(20, "").fact == "mirroradm ended with 20"
