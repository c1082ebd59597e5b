"""What an operator types, end to end: each verb with its exit code, and the words that say why and what to do."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.replication.pair import MIB, PROJECT, STRANGER, Pair, Side, pair_below, program, wait_until

REFUSED, NO_GOOD_DATA, NOT_UP, TIME_OVER, NO_ANSWER = 11, 17, 10, 5, 20


@pytest.fixture
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with pair_below(tmp_path_factory.mktemp("pair")) as pair:
        yield pair


@pytest.fixture
def equal(pair: Pair) -> Pair:
    return pair.begin_equal()


def out_of_sync_kib(side: Side) -> int:
    return int(side.status()["connections"][0]["peer_devices"][0]["out-of-sync"])


# the beginning


def test_data_of_somebody_else_are_not_overwritten(pair: Pair) -> None:
    program("mkfs.ext4", "-q", "-F", pair.alpha.image)
    said = pair.alpha.refused(REFUSED, "create-md")
    assert "ext4" in said
    assert str(pair.alpha.image) in said
    assert "ext4" in pair.alpha.refused(REFUSED, "create-md", "--force")
    program("fsck.ext4", "-fn", pair.alpha.image)


def test_metadata_of_a_mirror_are_overwritten_by_force_only(equal: Pair) -> None:
    said = equal.alpha.refused(REFUSED, "create-md", "--force")
    assert "uses the disk" in said
    equal.end()
    before = equal.alpha.adm("dump-md")
    assert "--force" in equal.alpha.refused(REFUSED, "create-md")
    assert equal.alpha.adm("dump-md") == before
    equal.alpha.adm("create-md", "--force")
    equal.on_both("up")
    equal.is_equal()  # beta's data are the only ones, and alpha has taken them


def test_up_and_down_may_be_said_twice(pair: Pair) -> None:
    assert "create-md" in pair.alpha.refused(NO_ANSWER, "up")
    pair.begin()
    pid = pair.alpha.pid
    pair.alpha.adm("up")
    assert pair.alpha.pid == pid
    pair.alpha.adm("down")
    pair.alpha.adm("down")
    assert pair.alpha.pid is None
    assert f"mirroradm up {pair.name}" in pair.alpha.refused(NOT_UP, "primary")
    assert f"mirroradm up {pair.name}" in pair.alpha.refused(NOT_UP, "status")


def test_the_first_primary_is_made_by_force_and_its_disk_is_the_truth(pair: Pair) -> None:
    for side in pair.sides:
        side.fill(16)
    pair.begin()
    assert "Inconsistent" in pair.alpha.refused(NO_GOOD_DATA, "primary")
    events = subprocess.Popen(
        pair.beta.command("events2", pair.name, "--timestamps"), cwd=PROJECT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert events.stdout is not None
        lines: list[str] = []
        while not lines or not lines[-1].endswith(" exists -\n"):
            lines.append(events.stdout.readline())
            assert lines[-1], lines
        pair.alpha.adm("primary", "--force")
        assert "Primary" in pair.beta.refused(REFUSED, "primary")
        pair.alpha.adm("wait-sync", "--timeout", "30")
        pair.beta.adm("wait-sync", "--timeout", "30")
        pair.is_equal()
    finally:
        events.terminate()
        lines += events.stdout.readlines() if events.stdout else []
        events.wait(10)
    words = [" ".join(line.split()[1:]) for line in lines]
    assert words[0].startswith(f"exists resource name:{pair.name} role:Secondary"), words
    assert any(line.startswith("exists -") for line in words), words
    assert any(line.startswith("change connection") and "role:Primary" in line for line in words), words
    assert any("replication:SyncTarget" in line for line in words), words
    assert any(line.startswith("change device") and "disk:UpToDate" in line for line in words), words
    assert words.index(next(line for line in words if "replication:SyncTarget" in line)) < words.index(
        next(line for line in words if line.startswith("change device") and "disk:UpToDate" in line)
    )
    pair.alpha.qemu_io("write -P 9 1M 1M", "flush")
    pair.is_clean()
    expected = bytearray(random.Random("alpha").randbytes(16 * MIB))
    expected[MIB : 2 * MIB] = b"\x09" * MIB
    assert pair.beta.image.read_bytes()[: 16 * MIB] == expected


def test_equal_disks_are_declared_equal_without_a_resync(pair: Pair) -> None:
    pair.begin()
    pair.alpha.adm("new-current-uuid", "--clear-bitmap")
    pair.is_equal()
    assert "SyncTarget" not in pair.beta.log()
    assert "fresh" in pair.alpha.refused(REFUSED, "new-current-uuid", "--clear-bitmap")
    pair.beta.adm("primary")
    pair.beta.qemu_io("write -P 1 0 1M")
    pair.is_clean()


# the normal day


def test_roles_are_switched_both_ways(equal: Pair) -> None:
    alpha, beta = equal.sides
    for turn in range(1, 4):
        active, standby = (alpha, beta) if turn % 2 else (beta, alpha)
        active.adm("primary")
        active.adm("primary")
        said = standby.refused(REFUSED, "primary")
        assert f"{active.name} is Primary" in said
        assert f"mirroradm secondary {equal.name}" in said
        if turn > 1:
            active.qemu_io(f"read -P {turn - 1} 0 1M")
        active.qemu_io(f"write -P {turn} 0 1M")
        active.adm("secondary")
        active.adm("secondary")
    equal.is_clean()


def test_a_primary_whose_socket_is_open_is_not_demoted(equal: Pair) -> None:
    equal.alpha.adm("primary")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(equal.alpha.socket))
        greeting = client.recv(18)
        client.sendall(struct.pack(">IQII", 1, 0x49484156454F5054, 1, 0))  # the unnamed export, as of old
        assert len(greeting) == 18
        assert client.recv(134)
        wait_until(lambda: bool(equal.alpha.status()["devices"][0]["open"]), "the client is seen")
        for verb in ("secondary", "down"):
            said = equal.alpha.refused(REFUSED, verb)
            assert "held open" in said
            assert "python" in said or "pytest" in said
        assert equal.alpha.states[0] == "Primary"
        equal.alpha.adm("secondary", "--force")
        assert client.recv(1) == b""
    equal.is_clean()


def test_a_standby_that_left_is_old_until_it_is_back(equal: Pair) -> None:
    alpha, beta = equal.sides
    alpha.adm("primary")
    beta.adm("disconnect")
    assert beta.states == ("Secondary", "StandAlone", "Outdated")
    said = beta.refused(NO_GOOD_DATA, "primary")
    assert "Outdated" in said
    assert f"mirroradm permit {equal.name} --accept-loss=beta" in said
    assert "StandAlone" in beta.refused(REFUSED, "wait-connect")
    alpha.qemu_io("write -P 7 3M 2M")
    peer = alpha.status()["connections"][0]["peer_devices"][0]
    wait_until(lambda: out_of_sync_kib(alpha) == 2048, f"two MiB are out of sync, {peer}")
    beta.adm("connect")
    beta.adm("wait-connect")
    beta.adm("wait-sync")
    equal.is_equal()
    equal.is_clean()


def test_a_host_that_ended_cleanly_leaves_its_peer_free_to_go_on(equal: Pair) -> None:
    """alpha was Primary, handed over and is off; beta, which saw that, is promoted. Started anew it could not know."""
    alpha, beta = equal.sides
    alpha.adm("primary")
    alpha.qemu_io("write -P 5 0 1M")
    alpha.adm("secondary")
    alpha.adm("down")
    beta.adm("primary")
    beta.qemu_io("read -P 5 0 1M", "write -P 6 0 1M")
    beta.adm("secondary")
    beta.adm("down")
    beta.adm("up")
    beta.adm("primary")  # it was alone when it was demoted: nobody has newer data
    alpha.adm("up")
    equal.is_equal()
    beta.adm("secondary")
    equal.is_clean()


def test_a_host_that_is_alone_from_the_start_is_not_promoted_without_a_word(equal: Pair) -> None:
    alpha, beta = equal.sides
    alpha.adm("primary")
    beta.kill()
    beta.adm("up")
    beta.becomes("Secondary", "Connected", "UpToDate")
    beta.kill()
    alpha.kill()
    beta.adm("up")
    said = beta.refused(REFUSED, "primary")
    assert "not seen since" in said
    assert "--accept-loss=beta" in said
    assert "not seen since" in beta.reason


def test_invalidate_takes_everything_from_the_peer(equal: Pair) -> None:
    alpha, beta = equal.sides
    alpha.adm("primary")
    alpha.qemu_io("write -P 3 0 60M")
    assert "is Primary" in alpha.refused(REFUSED, "invalidate")
    assert "is Primary" in beta.refused(REFUSED, "invalidate-remote")
    beta.adm("invalidate")
    beta.adm("wait-sync")
    equal.is_equal()
    assert "SyncTarget" in beta.log()
    alpha.adm("invalidate-remote")
    alpha.adm("wait-sync")
    equal.is_equal()
    equal.is_clean()


def test_an_outdated_side_is_refused(equal: Pair) -> None:
    alpha, beta = equal.sides
    assert "is connected" in beta.refused(REFUSED, "outdate")
    beta.adm("disconnect")
    beta.adm("outdate")
    assert beta.states[2] == "Outdated"
    assert "Outdated" in beta.refused(NO_GOOD_DATA, "primary")
    beta.adm("connect")
    equal.is_equal()
    alpha.adm("primary")
    assert "is Primary" in alpha.refused(REFUSED, "outdate")


def test_a_disk_is_put_away_and_taken_again(equal: Pair) -> None:
    beta = equal.beta
    assert "connected" in beta.refused(REFUSED, "detach")
    beta.adm("disconnect")
    beta.adm("detach")
    assert beta.states[2] == "Diskless"
    assert "has no disk" in beta.refused(NO_GOOD_DATA, "primary")
    beta.adm("attach")
    beta.adm("connect")
    equal.is_equal()
    equal.is_clean()


# when the other side is lost


def test_a_takeover_after_the_loss_of_the_primary_takes_an_operators_word(equal: Pair) -> None:
    alpha, beta = equal.sides
    alpha.adm("primary")
    alpha.qemu_io("write -P 1 0 4M", "flush")
    assert "is connected" in beta.refused(REFUSED, "permit", "--accept-loss=beta")
    alpha.kill()
    beta.becomes("Secondary", "Connecting", "UpToDate")
    said = beta.refused(REFUSED, "primary")
    assert "alpha was Primary when contact was lost" in said
    assert f"mirroradm permit {equal.name} --accept-loss=beta" in said
    assert "alpha was Primary when contact was lost" in beta.adm("status")
    assert 'is beta, not "gamma"' in beta.refused(1, "permit", "--accept-loss=gamma")
    beta.adm("primary", "--accept-loss=beta")
    beta.qemu_io("read -P 1 0 4M", "write -P 2 1M 1M", "flush")
    alpha.adm("up")
    equal.is_equal()
    assert "SyncTarget" in alpha.log()
    assert alpha.states[0] == "Secondary"
    equal.is_clean()
    assert alpha.image.read_bytes()[: 3 * MIB] == b"\1" * MIB + b"\2" * MIB + b"\1" * MIB


def test_a_permit_lives_until_the_data_change(equal: Pair) -> None:
    alpha, beta = equal.sides
    alpha.adm("primary")
    alpha.kill()
    beta.becomes("Secondary", "Connecting", "UpToDate")
    beta.adm("permit", "--accept-loss=beta")
    beta.kill()
    beta.adm("up")  # the word was written down
    beta.adm("primary")
    beta.kill()
    beta.adm("up")
    beta.refused(REFUSED, "primary")


def test_split_brain_is_seen_named_and_ended_by_who_gives_way(equal: Pair) -> None:
    alpha, beta = equal.sides
    alpha.adm("primary")
    with alpha.paused():
        beta.becomes("Secondary", "Connecting", "UpToDate")
        beta.adm("primary", "--accept-loss=beta")
        beta.qemu_io("write -P 0xbb 0 1M", "flush")
    alpha.qemu_io("write -P 0xaa 0 2M", "flush")
    for side in equal.sides:
        side.becomes("Primary", "StandAlone", "UpToDate")
        assert "plit" in side.reason, side.reason
        assert "--discard-my-data" in side.reason, side.reason
    assert "--discard-my-data" in alpha.adm("status")
    assert "cannot discard" in alpha.refused(REFUSED, "connect", "--discard-my-data")
    beta.adm("connect")
    alpha.adm("secondary")
    alpha.adm("connect", "--discard-my-data")
    equal.is_equal()
    assert "SyncTarget" in alpha.log()
    assert alpha.status()["mirror"]["reason"] is None or "Primary" in alpha.reason
    beta.qemu_io("read -P 0xbb 0 1M", "read -P 0 1M 1M")
    equal.is_clean()


def test_waiting_ends_in_time_or_at_once(equal: Pair) -> None:
    alpha, beta = equal.sides
    beta.kill()
    alpha.becomes("Secondary", "Connecting", "UpToDate")
    assert "0.3 s" in alpha.refused(TIME_OVER, "wait-connect", "-t", "0.3")
    assert "0.3 s" in alpha.refused(TIME_OVER, "wait-sync", "-t", "0.3")
    alpha.adm("disconnect")
    assert f"mirroradm connect {equal.name}" in alpha.refused(REFUSED, "wait-sync")
    assert "does not run" in beta.refused(NOT_UP, "wait-connect")


# what is seen


def test_status_speaks_drbds_json(equal: Pair) -> None:
    alpha, beta = equal.sides
    alpha.adm("primary")
    (resource,) = json.loads(alpha.adm("status", "--json"))
    assert (resource["name"], resource["role"], resource["suspended"]) == (equal.name, "Primary", False)
    (device,) = resource["devices"]
    assert (device["disk-state"], device["quorum"]) == ("UpToDate", True)
    assert device["size"] * 1024 == alpha.data_bytes
    assert device["backing-disk"] == str(alpha.image)
    (connection,) = resource["connections"]
    assert (connection["name"], connection["connection-state"], connection["peer-role"]) == (
        "beta",
        "Connected",
        "Secondary",
    )
    (path,) = connection["paths"]
    assert path["established"] is True
    assert path["remote_host"] == {"address": beta.address, "port": equal.port, "family": "ipv4"}
    (peer,) = connection["peer_devices"]
    assert (peer["replication-state"], peer["peer-disk-state"]) == ("Established", "UpToDate")
    assert peer["out-of-sync"] == 0
    assert peer["percent-in-sync"] == 100.0
    mirror = resource["mirror"]
    assert mirror["eligible"] is True
    assert mirror["reason"] is mirror["remedy"] is mirror["blocked-by-disk-s"] is None
    (standby,) = json.loads(beta.adm("status", "-o", "json"))
    assert standby["mirror"]["eligible"] is False
    assert "alpha is Primary" in standby["mirror"]["reason"]
    assert standby["mirror"]["generation"] == mirror["generation"]
    said = alpha.adm("status")
    assert f"{equal.name} role:Primary\n  disk:UpToDate\n  beta role:Secondary\n    peer-disk:UpToDate\n" in said


# who does not belong


def test_one_disk_has_one_daemon(equal: Pair) -> None:
    alpha = equal.alpha
    own = alpha.configuration / f"{equal.name}.res"
    other = alpha.configuration / "other.res"
    other.write_text(own.read_text().replace(equal.name, "other").replace(f":{equal.port}", f":{equal.port + 1}"))
    other.chmod(0o600)
    done = alpha.run("up", "other", "-c", str(other))
    assert done.returncode == NO_ANSWER
    assert "in use by another process" in done.stderr
    command = [sys.executable, "-m", "replication.daemon", equal.name, "-c", str(own)]
    second = subprocess.run(
        alpha.on_this_host(*command, "--runtime-directory", str(alpha.runtime)),
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert second.returncode != 0
    assert f"runs already (process {alpha.pid})" in second.stderr
    equal.is_equal()


def test_a_peer_with_another_secret_is_kept_out_and_both_say_so(pair: Pair) -> None:
    pair.configure(pair.beta, secret="another")
    pair.on_both("create-md")
    pair.on_both("up")
    for side in pair.sides:
        wait_until(lambda side=side: side.states[1] == "StandAlone", f"{side.name} gives up", 10)  # type: ignore[misc]
        assert "secret" in side.reason, side.reason
    pair.beta.adm("down")
    pair.configure(pair.beta)
    pair.beta.adm("up")
    pair.alpha.adm("connect")
    for side in pair.sides:
        side.becomes("Secondary", "Connected", "Inconsistent")


def test_strangers_and_garbage_on_the_port_do_not_disturb(equal: Pair) -> None:
    """Neither while it looks for its peer, nor while it has it, and the peer is found all the same."""
    alpha, beta = equal.sides
    alpha.adm("primary")
    say_nonsense(STRANGER, alpha)
    beta.adm("down")
    alpha.becomes("Primary", "Connecting", "UpToDate")
    heard = say_nonsense(STRANGER, alpha) + say_nonsense(beta.address, alpha)
    assert heard, "nobody listened: this test shows nothing"
    alpha.qemu_io("write -P 4 0 1M", "flush", "read -P 4 0 1M")
    beta.adm("up")
    equal.is_equal()
    assert alpha.states == ("Primary", "Connected", "UpToDate")
    equal.is_clean()


def say_nonsense(source: str, side: Side) -> int:
    """From an address to the port of the mirror: nothing, bytes, and what looks right. How often it was heard."""
    chance, heard = random.Random(3), 0
    first_packet = struct.pack(">IHH", 0x83740267, 0xFFF2, 0)
    for said in (b"", b"\0", first_packet, first_packet + chance.randbytes(64), chance.randbytes(8), b"\xff" * 4096):
        with socket.socket() as connection, contextlib.suppress(OSError):
            connection.settimeout(5)
            connection.bind((source, 0))
            connection.connect((side.address, side.port))
            heard += 1
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    return heard
