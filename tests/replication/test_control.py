"""The control socket: questions, answers, deadlines, and clients that mean no good."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication import control
from replication.control import (
    BACKLOG_LIMIT_BYTES,
    CLIENT_LIMIT,
    REQUEST_LIMIT_BYTES,
    Exit,
    MirrorClient,
    NotRunning,
    Request,
    Verb,
    address_of,
    claim,
    control_path,
    daemon_pid,
    exit_code,
    running,
)
from replication.control_server import ControlServer, Ticket
from replication.errors import DiskFailure, MirrorError, Refusal, Unavailable
from tests.replication.statuses import status

Posted = tuple[str, dict[str, Any], Ticket]


class Daemon:
    """A control server, and a main loop that does nothing by itself."""

    def __init__(self, runtime: Path, resource: str = "r0") -> None:
        self.runtime = runtime
        self.resource = resource
        self.row = status(resource)
        self.posted: queue.Queue[Posted] = queue.Queue()
        self.server = ControlServer(
            control_path(resource, runtime), lambda: self.row, lambda *posted: self.posted.put(posted), tick_s=0.05
        )
        self.server.start()

    def client(self) -> MirrorClient:
        return MirrorClient(self.resource, self.runtime)

    def raw(self) -> socket.socket:
        """A connection on which anything can be said."""
        connection = socket.socket(socket.AF_UNIX)
        with address_of(control_path(self.resource, self.runtime)) as address:
            connection.connect(address)
        connection.settimeout(10)
        return connection

    def next(self) -> Posted:
        return self.posted.get(timeout=10)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    daemon = Daemon(tmp_path)
    yield daemon
    daemon.server.check()
    daemon.server.close()


def ask_in_background(client: MirrorClient, verb: Verb, timeout_s: float, **arguments: Any) -> queue.Queue[Any]:
    """Where the answer, or the error, will be."""
    answer: queue.Queue[Any] = queue.Queue()

    def ask() -> None:
        try:
            answer.put(client.ask(verb, timeout_s, **arguments))
        except MirrorError as error:
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    return answer


def eventually(what: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "never came true"
        time.sleep(0.01)


def everything(connection: socket.socket) -> bytes:
    """Until the other side closes."""
    data = bytearray()
    try:
        while received := connection.recv(1 << 16):
            data += received
    except ConnectionResetError:
        pass
    return bytes(data)


# questions and answers


def test_status_is_answered_while_the_main_loop_does_nothing(daemon: Daemon) -> None:
    assert daemon.client().ask(Verb.STATUS, 5.0) == status()
    assert daemon.posted.empty()


def test_a_verb_goes_to_the_main_loop_and_its_answer_comes_back(daemon: Daemon) -> None:
    answer = ask_in_background(daemon.client(), Verb.PRIMARY, 10.0, force=True)
    verb, arguments, ticket = daemon.next()
    assert (verb, arguments) == ("primary", {"force": True})
    assert ticket.begin()
    ticket({"generation": "01"})
    assert answer.get(timeout=10) == {"generation": "01"}


def test_a_refusal_travels_with_reason_remedy_and_code(daemon: Daemon) -> None:
    answer = ask_in_background(daemon.client(), Verb.PRIMARY, 10.0)
    daemon.next()[2](Refusal("mirror r0", "its data are old", "mirroradm connect r0", code=17))
    error = answer.get(timeout=10)
    assert isinstance(error, Refusal)
    assert (error.subject, error.fact, error.remedy, error.code) == (
        "mirror r0", "its data are old", "mirroradm connect r0", 17,
    )  # fmt: skip


def test_post_itself_may_refuse(tmp_path: Path) -> None:
    def post(verb: str, arguments: dict[str, Any], ticket: Ticket) -> None:
        raise Refusal("mirror r0", f"{verb} is not for now")

    server = ControlServer(control_path("r0", tmp_path), status, post)
    server.start()
    with pytest.raises(Refusal, match="outdate is not for now"):
        MirrorClient("r0", tmp_path).ask(Verb.OUTDATE, 5.0)
    server.close()


def test_every_error_has_the_exit_code_of_drbds_tools() -> None:
    assert exit_code(NotRunning("r0")) == Exit.REFUSED
    assert exit_code(Unavailable("mirror r0", "silent")) == Exit.NO_ANSWER
    assert exit_code(Refusal("mirror r0", "no", code=17)) == Exit.NO_GOOD_DATA
    assert exit_code(DiskFailure("/dev/sdb", "broken")) == Exit.NO_DISK
    assert exit_code(MirrorError("mirror r0", "no")) == Exit.STATE_REFUSED


# deadlines


def test_a_verb_that_did_not_begin_in_time_is_withdrawn_and_never_done(daemon: Daemon) -> None:
    with pytest.raises(Unavailable, match=r"primary not done within 0\.2 s, and withdrawn"):
        daemon.client().ask(Verb.PRIMARY, 0.2)
    ticket = daemon.next()[2]
    assert not ticket.begin()
    ticket({})  # nobody is there to hear it


def test_a_verb_that_has_begun_may_still_be_done_and_that_is_said(daemon: Daemon) -> None:
    daemon.row = status(blocked_by_disk_s=12.0)
    answer = ask_in_background(daemon.client(), Verb.SECONDARY, 0.3)
    assert daemon.next()[2].begin()
    said = str(answer.get(timeout=10))
    assert "may still be done" in said
    assert "the disk has not answered for 12 s" in said


def test_whoever_leaves_withdraws_what_it_asked_for(daemon: Daemon) -> None:
    connection = daemon.raw()
    connection.sendall(Request(Verb.PRIMARY, {}, 60.0).encode())
    ticket = daemon.next()[2]
    connection.close()
    daemon.client().ask(Verb.STATUS, 5.0)  # once this is answered, the end of the other was seen
    assert not ticket.begin()


def test_the_first_result_of_a_verb_counts(daemon: Daemon) -> None:
    answer = ask_in_background(daemon.client(), Verb.CONNECT, 10.0)
    ticket = daemon.next()[2]
    ticket({"first": True})
    ticket({"first": False})
    assert answer.get(timeout=10) == {"first": True}


def test_a_daemon_that_does_not_answer_at_all_is_given_up_in_time(tmp_path: Path) -> None:
    path = control_path("r0", tmp_path)
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as deaf, address_of(path) as address:
        deaf.bind(address)
        deaf.listen(0)
        begin = time.monotonic()
        for _ in range(3):  # the queue of the socket is full at the end
            with pytest.raises(Unavailable, match="does not"):
                MirrorClient("r0", tmp_path).ask(Verb.STATUS, 0.2)
        assert time.monotonic() - begin < 5


def test_the_answer_to_down_arrives_though_the_server_closes_behind_it(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    answer = ask_in_background(daemon.client(), Verb.DOWN, 10.0)
    daemon.next()[2]({})
    daemon.server.close()
    assert answer.get(timeout=10) == {}
    assert not control_path("r0", tmp_path).exists()


def test_a_result_that_comes_after_the_end_harms_nobody(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path)
    answer = ask_in_background(daemon.client(), Verb.CONNECT, 10.0)
    ticket = daemon.next()[2]
    daemon.server.close()
    ticket({})
    daemon.server.publish({"status": status()})
    assert isinstance(answer.get(timeout=10), NotRunning)


# who is there


def test_without_a_daemon_the_remedy_is_up(tmp_path: Path) -> None:
    with pytest.raises(NotRunning) as caught:
        MirrorClient("r0", tmp_path).ask(Verb.STATUS, 1.0)
    assert str(caught.value) == "mirror r0: its mirrord does not run; mirroradm up r0"


def test_the_socket_of_a_dead_daemon_is_no_daemon_and_no_obstacle(tmp_path: Path) -> None:
    path = control_path("r0", tmp_path)
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead, address_of(path) as address:
        dead.bind(address)
    with pytest.raises(NotRunning):
        MirrorClient("r0", tmp_path).ask(Verb.STATUS, 1.0)
    daemon = Daemon(tmp_path)
    assert daemon.client().ask(Verb.STATUS, 5.0)["name"] == "r0"
    daemon.server.close()


HOLDER = """
import sys, pathlib, time
from replication.control import claim
lock = claim(sys.argv[1], pathlib.Path(sys.argv[2]))
print("claimed", flush=True)
sys.stdin.read()
"""


def test_the_daemon_is_who_holds_the_lock_and_nobody_after_its_death(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, "r0", str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"claimed\n"
    assert daemon_pid("r0", tmp_path) == holder.pid
    assert running(tmp_path) == ["r0"]
    with pytest.raises(Refusal, match=rf"runs already \(process {holder.pid}\)"):
        claim("r0", tmp_path)
    with pytest.raises(Unavailable, match="no control socket"):  # it is there, and not to be taken for absent
        MirrorClient("r0", tmp_path).ask(Verb.STATUS, 0.1)
    holder.kill()
    holder.communicate()
    assert daemon_pid("r0", tmp_path) is None
    assert running(tmp_path) == []
    os.close(claim("r0", tmp_path))


@pytest.mark.parametrize("name", ["", ".", "..", "all", "../r0", "a/b", "a\0b", "line\nfeed", "x" * 129])
def test_a_name_never_leads_out_of_the_runtime_directory(name: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="no name of a resource"):
        MirrorClient(name, tmp_path)


def test_directory_and_socket_are_for_the_owner_alone(daemon: Daemon) -> None:
    path = control_path("r0", daemon.runtime)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600


def test_another_user_is_turned_away_even_with_the_doors_open(daemon: Daemon) -> None:
    assert os.geteuid() == 0, "this test needs root"
    path = control_path("r0", daemon.runtime)
    path.parent.chmod(0o755)
    path.chmod(0o666)
    reach = os.open(path.parent, os.O_PATH)  # the directories above are closed to that user
    script = f"import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect('/proc/self/fd/{reach}/control'); "
    script += "sys.stdout.write(s.recv(4096).decode())"
    told = subprocess.run(
        ["/usr/bin/python3", "-c", script], user=65534, pass_fds=[reach], capture_output=True, text=True, check=True
    ).stdout
    os.close(reach)
    assert "user 65534 may not ask" in json.loads(told)["error"]["fact"]


def test_a_path_too_long_for_a_socket_works_all_the_same(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / ("d" * 100), "r" * 64)
    assert daemon.client().ask(Verb.STATUS, 5.0)["name"] == "r" * 64
    daemon.server.close()


# events


def test_a_listener_hears_the_present_and_then_every_change_in_order(daemon: Daemon) -> None:
    with daemon.client().events() as events:
        assert events.next(5.0) == {"status": status()}
        for role in ("Primary", "Secondary", "Primary"):
            daemon.row = status(role=role)
            daemon.server.publish({"status": daemon.row})
        daemon.server.publish({"helper": {"name": "fence-peer"}})
        told: list[Any] = []
        while {"helper": {"name": "fence-peer"}} not in told:
            told.append(events.next(5.0))
        roles = [event["status"]["role"] for event in told if "status" in event]
        assert roles[-3:] == ["Primary", "Secondary", "Primary"]


def test_progress_is_heard_though_nobody_publishes_it(daemon: Daemon) -> None:
    with daemon.client().events() as events:
        assert events.next(5.0) is not None
        daemon.row = status(written=4711)
        eventually(lambda: events.next(0.1) == {"status": status(written=4711)})


def test_silence_is_no_event_and_the_end_is_not_running(daemon: Daemon) -> None:
    with daemon.client().events() as events:
        while events.next(0.2) is not None:
            pass
        daemon.server.close()
        with pytest.raises(NotRunning):
            events.next(5.0)
    daemon.server = Daemon(daemon.runtime).server  # for the fixture to close


# clients that mean no good


NONSENSE = [
    b"\n",
    b"primary\n",
    b"[]\n",
    b'"status"\n',
    b"null\n",
    b"{}\n",
    b'{"verb": "explode"}\n',
    b'{"verb": ["status"]}\n',
    b'{"verb": "primary", "arguments": []}\n',
    b'{"verb": "primary", "timeout_s": "soon"}\n',
    b'{"verb": "primary", "timeout_s": NaN}\n',
    b'{"verb": "primary", "timeout_s": -1}\n',
    b'{"verb": "primary", "timeout_s": 1e999}\n',
    b'{"verb": "primary", "timeout_s": ' + b"9" * 5000 + b"}\n",
    b"\xff\xfe\n",
    b"[" * 60000 + b"\n",
]


@pytest.mark.parametrize("line", NONSENSE, ids=[f"{line[:40]!r}" for line in NONSENSE])
def test_nonsense_is_answered_with_an_error_and_the_next_question_is_heard(daemon: Daemon, line: bytes) -> None:
    with daemon.raw() as connection:
        connection.sendall(line)
        buffer = bytearray()
        reply = control.read_line(connection, buffer, time.monotonic() + 5)
        assert reply is not None
        assert json.loads(reply)["error"]["code"] == Exit.NO_ANSWER
        connection.sendall(Request(Verb.STATUS).encode())
        reply = control.read_line(connection, buffer, time.monotonic() + 5)
        assert reply is not None
        assert json.loads(reply)["ok"] == status()
    assert daemon.posted.empty()


@given(st.binary(max_size=200))
def test_no_bytes_make_the_decoder_fail_otherwise_than_by_its_error(line: bytes) -> None:
    with contextlib.suppress(Unavailable):
        Request.decode(line)
    with contextlib.suppress(Unavailable, Refusal):
        control.decode_reply(line)


def test_a_request_without_end_is_cut_off(daemon: Daemon) -> None:
    with daemon.raw() as connection:
        try:
            for _ in range(100):
                connection.sendall(b"x" * REQUEST_LIMIT_BYTES)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert b"more than 65536 bytes" in everything(connection)


def test_half_a_request_hinders_nobody(daemon: Daemon) -> None:
    with daemon.raw() as slow:
        slow.sendall(b'{"verb": "sta')
        assert daemon.client().ask(Verb.STATUS, 5.0) == status()
        slow.sendall(b'tus"}\n')
        assert control.read_line(slow, bytearray(), time.monotonic() + 5)


def test_whoever_asks_without_listening_to_answers_hinders_nobody(daemon: Daemon) -> None:
    with daemon.raw() as rude:
        rude.settimeout(0.2)
        try:
            for _ in range(1000):
                rude.sendall(Request(Verb.STATUS).encode() * 100)
        except TimeoutError:
            pass  # the server does not read on as long as nobody takes the answers
        else:
            pytest.fail("the server took everything in")
        assert daemon.client().ask(Verb.STATUS, 5.0) == status()


def test_requests_sent_ahead_are_answered_in_order(daemon: Daemon) -> None:
    with daemon.raw() as connection:
        connection.sendall(Request(Verb.CONNECT).encode() + Request(Verb.STATUS).encode())
        daemon.next()[2]({"verb": "connect"})
        buffer = bytearray()
        replies = [control.read_line(connection, buffer, time.monotonic() + 5) for _ in range(2)]
        assert [json.loads(reply or b"{}")["ok"] for reply in replies] == [{"verb": "connect"}, status()]


def test_a_listener_that_falls_behind_is_dropped_and_the_others_hear_on(daemon: Daemon) -> None:
    with daemon.raw() as deaf, daemon.client().events() as events:
        deaf.sendall(Request(Verb.EVENTS).encode())
        assert events.next(5.0) is not None
        big = {"helper": {"name": "x" * 100_000}}
        heard = 0
        for _ in range(4 * BACKLOG_LIMIT_BYTES // 100_000):
            daemon.server.publish(big)
            while (event := events.next(5.0)) != big:
                assert event is not None
            heard += 1
        assert heard > 40
        assert len(everything(deaf)) < 3 * BACKLOG_LIMIT_BYTES


def test_idlers_make_room_for_those_who_ask(daemon: Daemon) -> None:
    idlers = [daemon.raw() for _ in range(CLIENT_LIMIT + 8)]
    try:
        for _ in range(3):
            assert daemon.client().ask(Verb.STATUS, 5.0) == status()
    finally:
        for idler in idlers:
            idler.close()


def test_a_bug_in_the_thread_reaches_the_main_loop(tmp_path: Path) -> None:
    def post(verb: str, arguments: dict[str, Any], ticket: Ticket) -> None:
        raise AssertionError("a bug")

    heard: list[threading.ExceptHookArgs] = []
    hook, threading.excepthook = threading.excepthook, heard.append
    try:
        server = ControlServer(control_path("r0", tmp_path), status, post)
        server.start()
        answer = ask_in_background(MirrorClient("r0", tmp_path), Verb.OUTDATE, 0.2)
        assert isinstance(answer.get(timeout=10), MirrorError)
        with pytest.raises(AssertionError, match="a bug"):
            server.check()
    finally:
        threading.excepthook = hook
    server.close()
