from __future__ import annotations

import pytest

from agents.supervision.belonging import (
    GROUP,
    PROCESS,
    SESSION,
    Claim,
    Entry,
    has_name,
    is_of_pidfile,
    members,
    named,
    untouchable,
)

AGENT = 500
# pid: parent, group, session; the executor 400 calls the agent 500; 10 is the application's first process
TREE = {
    1: Entry(1, 0, 1, 1, 0, "init"),
    400: Entry(400, 1, 400, 400, 5, "executor"),
    AGENT: Entry(AGENT, 400, AGENT, 400, 900, "agent"),
    10: Entry(10, 1, 10, 10, 100, "app", mark="db/token"),
    11: Entry(11, 10, 10, 10, 101, "worker", mark="db/token"),
    12: Entry(12, 10, 12, 10, 102, "job", mark="db/token"),
    13: Entry(13, 1, 13, 13, 103, "escaped", mark="db/token"),
    14: Entry(14, 13, 14, 14, 104, "unmarked child"),
    20: Entry(20, 1, 20, 20, 50, "stranger"),
    21: Entry(21, 1, 21, 21, 60, "other", mark="web/token2"),
}
CLAIM = Claim("db", token="token", leader=(10, 100), user=0)


def pids(table: dict[int, Entry], claim: Claim, scope: str, pidfile_pid: int | None = None) -> list[int]:
    return [entry.pid for entry in members(table, claim, AGENT, scope, pidfile_pid)]


def without(*gone: int) -> dict[int, Entry]:
    """The tree after some processes died: their children have become init's."""
    table = {}
    for pid, e in TREE.items():
        if pid not in gone:
            parent = 1 if e.parent in gone else e.parent
            table[pid] = Entry(pid, parent, e.group, e.session, e.start_ticks, e.name, mark=e.mark)
    return table


def test_each_scope_reaches_as_far_as_it_says() -> None:
    assert pids(TREE, CLAIM, PROCESS) == [10]
    assert pids(TREE, CLAIM, GROUP) == [10, 11]
    assert pids(TREE, CLAIM, SESSION) == [10, 11, 12, 13, 14]


def test_the_session_outlives_its_leader_as_long_as_one_member_is_proven() -> None:
    assert pids(without(10), CLAIM, SESSION) == [11, 12, 13, 14]
    assert pids(without(10), CLAIM, GROUP) == [11]
    assert pids(without(10), CLAIM, PROCESS) == []


def test_a_session_of_the_leaders_number_without_proof_is_somebody_elses() -> None:
    table = without(10, 11, 12, 13, 14)
    table[77] = Entry(77, 1, 10, 10, 700, "later")
    assert pids(table, CLAIM, SESSION) == []
    assert pids(table, CLAIM, GROUP) == []


def test_a_reused_pid_is_not_the_recorded_process() -> None:
    table = without(10, 11, 12, 13, 14)
    table[10] = Entry(10, 1, 10, 10, 9000, "later")
    for scope in (PROCESS, GROUP, SESSION):
        assert pids(table, CLAIM, scope) == []


def test_orphans_recorded_by_an_earlier_stop_belong_with_their_children() -> None:
    claim = Claim("db", token="", leader=(10, 100), recorded=frozenset({(13, 103)}), user=5)
    assert pids(without(10, 11, 12), claim, SESSION) == [13, 14]


def test_a_mark_without_known_token_counts_only_from_root_or_the_user() -> None:
    lost = Claim("db", user=33)
    table = {
        pid: Entry(pid, 1, pid, pid, pid, mark="db/old", real_user=user) for pid, user in ((30, 0), (31, 33), (32, 34))
    }
    table[33] = Entry(33, 1, 33, 33, 33, mark="db/old", is_here=False)
    assert pids(table, lost, SESSION) == [30, 31]
    assert pids(table, Claim("db", token="old", user=33), SESSION) == [30, 31, 32, 33]


def test_an_instance_whose_name_begins_alike_is_another() -> None:
    table = {30: Entry(30, 1, 30, 30, 30, mark="db/2/x"), 31: Entry(31, 1, 31, 31, 31, mark="db2/x")}
    assert pids(table, Claim("db", token="x", user=0), SESSION) == []


def test_nothing_ever_reaches_the_agent_its_callers_or_init() -> None:
    everything = frozenset(entry.identity for entry in TREE.values())
    claim = Claim("db", recorded=everything, process_name="agent", user=0)
    assert untouchable(TREE, AGENT) == {1, 400, AGENT}
    for scope in (PROCESS, GROUP, SESSION):
        assert not {1, 400, AGENT} & set(pids(TREE, claim, scope, pidfile_pid=400))


def test_an_application_that_runs_the_agent_itself_does_not_get_it_killed() -> None:
    table = dict(TREE)
    table[AGENT] = Entry(AGENT, 11, AGENT, AGENT, 900, "agent", mark="db/token")
    assert pids(table, CLAIM, SESSION) == [12, 13, 14]


def test_a_matched_process_brings_only_sessions_and_groups_it_leads() -> None:
    # started by hand: it shares the session of the administrator's shell 600
    table = {
        600: Entry(600, 1, 600, 600, 1, "bash"),
        601: Entry(601, 600, 601, 600, 2, "db"),
        602: Entry(602, 601, 601, 600, 3, "child"),
        603: Entry(603, 600, 603, 600, 4, "vi"),
    }
    claim = Claim("x", process_name="db", user=0)
    assert pids(table, claim, SESSION) == [601, 602]
    assert pids(table, claim, GROUP) == [601, 602]
    assert pids(table, claim, PROCESS) == [601]


def entry(name: str, *arguments: str, **more: object) -> Entry:
    return Entry(30, 1, 30, 30, 30, name, arguments=arguments, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("process", "name", "expected"),
    [
        (entry("db", "/opt/db"), "db", True),
        (entry("renamed", "/opt/db", "-x"), "db", True),
        (entry("vi", "vi", "db"), "db", False),
        (entry("grep", "grep", "db"), "db", False),
        (entry("db", "/bin/sh", "/opt/db"), "db", True),
        (entry("db2", "/opt/db2"), "db", False),
        (entry("application-serv", "/opt/application-server"), "application-server", True),
        (entry("application-ser", "/bin/sh", "/opt/application-server"), "application-server", True),
        (entry("application-ser", "/opt/application-service"), "application-server", False),
        (entry("db", "db"), "", False),
        (entry("db"), "db", True),
    ],
)
def test_a_name_is_that_of_the_program_and_never_a_word_in_its_arguments(
    process: Entry, name: str, expected: bool
) -> None:
    assert has_name(process, name) is expected


@pytest.mark.parametrize(
    "process",
    [entry("db", user=7), entry("db", is_here=False), entry("db", mark="other/t")],
)
def test_a_name_does_not_take_processes_of_other_users_containers_and_applications(process: Entry) -> None:
    assert named({30: entry("db")}, Claim("x", process_name="db", user=0), AGENT)
    assert not named({30: process}, Claim("x", process_name="db", user=0), AGENT)
    assert not named({30: entry("db", user=7)}, Claim("x", process_name="db", user=None), AGENT)


@pytest.mark.parametrize(
    ("process", "claim", "older", "expected"),
    [
        (entry("db"), Claim("x", user=0), True, True),
        (entry("db"), Claim("x", user=0), False, False),
        (entry("db", user=5), Claim("x", user=0), True, False),
        (entry("db"), Claim("x", user=0, recorded=frozenset({(30, 30)})), False, True),
        (entry("db", mark="x/t", user=5), Claim("x", token="t", user=0), False, True),
        (entry("db"), Claim("x", user=0, process_name="db"), False, True),
        (entry("sshd"), Claim("x", user=0, process_name="db"), True, False),
        (entry("db", mark="y/t"), Claim("x", user=0), True, False),
    ],
)
def test_a_pid_file_means_a_process_that_can_have_written_it(
    process: Entry, claim: Claim, older: bool, expected: bool
) -> None:
    assert is_of_pidfile(process, claim, older_than_file=older) is expected
