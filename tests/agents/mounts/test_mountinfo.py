from __future__ import annotations

import pytest

from agents.mounts.mountinfo import (
    Mount,
    is_below,
    parse,
    parse_line,
    read_mounts,
    resolve,
    stack_at,
    unescape,
    with_descendants,
)

# as Linux 6.18 writes it; the second line has no optional fields, the third two, the fourth a source with a blank
TEXT = r"""22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,discard
30 22 7:3 / /srv/db rw,noatime - ext4 /dev/loop3 rw,emergency_ro
31 30 0:44 / /srv/db/in\040side rw shared:9 master:2 - tmpfs tmpfs rw,size=10k
32 22 0:45 /share /mnt\134net ro,relatime - cifs //server/big\040share rw,vers=3
"""


def mount(identifier: int, parent: int, point: str, *, number: str = "7:3", kind: str = "ext4") -> Mount:
    words = frozenset(("rw",))
    return Mount(identifier, parent, number, "/", point, words, kind, f"/dev/{number}", words)


def test_every_field_of_the_table_is_read_whatever_optional_fields_stand_between() -> None:
    root, db, inside, share = parse(TEXT)
    assert (root.identifier, root.parent, root.number, root.point, root.kind) == (22, 1, "254:0", "/", "ext4")
    assert db.options == {"rw", "noatime"}
    assert inside.point == "/srv/db/in side"
    assert (share.root, share.point, share.source) == ("/share", "/mnt\\net", "//server/big share")
    assert [one.is_on_block_device for one in (root, db, inside, share)] == [True, True, False, False]
    assert [one.is_read_only for one in (root, db, inside, share)] == [False, False, False, True]


def test_a_dead_device_shows_beside_rw() -> None:
    assert [one.death for one in parse(TEXT)] == ["", "emergency_ro", "", ""]
    assert parse_line("1 0 7:1 / /x rw - ext4 /dev/loop1 rw,shutdown").death == "shutdown"  # type: ignore[union-attr]


@pytest.mark.parametrize("line", ["", "nonsense", "1 2 3 / / rw -", "a b 7:1 / /x rw - ext4 src rw", "1 0 7:1 / /x rw"])
def test_what_is_no_line_of_the_table_is_left_out(line: str) -> None:
    assert parse_line(line) is None


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("/a", "/a"),
        ("/a\\040b", "/a b"),
        ("\\134\\011\\012", "\\\t\n"),
        ("/caf\\303\\251", "/café"),
        ("/\\9x", "/\\9x"),
        ("/\\777", "/\\777"),
        ("/end\\", "/end\\"),
        ("/a\\0401", "/a 1"),
    ],
)
def test_octal_escapes_become_the_bytes_they_stand_for(text: str, plain: str) -> None:
    assert unescape(text) == plain


def test_a_path_is_below_a_directory_only_at_a_slash() -> None:
    assert is_below("/srv/x", "/srv/x")
    assert is_below("/srv/x/y", "/srv/x")
    assert is_below("/anything", "/")
    assert not is_below("/srv/xy", "/srv/x")
    assert not is_below("/srv", "/srv/x")


def test_of_mounts_over_each_other_the_visible_one_comes_last_whatever_the_order_of_the_table() -> None:
    low, middle, top, beside = mount(40, 1, "/x"), mount(30, 40, "/x"), mount(35, 30, "/x"), mount(50, 1, "/xy")
    for table in ([low, middle, top, beside], [top, beside, middle, low]):
        assert stack_at(table, "/x") == [low, middle, top]
    assert stack_at([low], "/y") == []


def test_unmounting_goes_deepest_first_and_the_last_mounted_of_two_first() -> None:
    base, one, deep, other, over = (
        mount(10, 1, "/x"),
        mount(11, 10, "/x/one"),
        mount(12, 11, "/x/one/deep"),
        mount(13, 10, "/x/other"),
        mount(14, 10, "/x"),
    )
    stranger = mount(15, 1, "/y")
    order = with_descendants([base, one, deep, other, over, stranger], [base])
    assert order == [over, other, deep, one, base]
    bound = mount(20, 1, "/bound")
    assert with_descendants([base, one, bound], [base, bound]) == [bound, one, base]
    assert with_descendants([base, one], [base, one]) == [one, base]


def test_ten_thousand_nested_mounts_are_put_in_order() -> None:
    chain = [mount(n, n - 1, "/x" * n) for n in range(2, 10_002)]
    assert [one.identifier for one in with_descendants(chain, [chain[0]])] == list(range(10_001, 1, -1))


LINKS = {"/srv": "/data/srv", "/data/srv/a": "b", "/loop": "/loop", "/data/srv/b/up": "../c"}


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("/plain/x", "/plain/x"),
        ("/srv/x", "/data/srv/x"),
        ("/srv/a/x", "/data/srv/b/x"),
        ("/srv/a/up/./x", "/data/srv/c/x"),
        ("/", "/"),
        ("/net/srv", "/net/srv"),
    ],
)
def test_links_on_the_way_are_followed_as_the_kernel_does(path: str, real: str) -> None:
    assert resolve(path, [], lambda link: LINKS.get(link, ""), lambda kind: False) == real


def test_links_in_a_circle_end() -> None:
    assert resolve("/loop", [], lambda link: LINKS.get(link, ""), lambda kind: False).startswith("/")


def test_no_mount_point_and_nothing_on_a_remote_file_system_is_looked_at() -> None:
    asked: list[str] = []

    def link_target(path: str) -> str:
        asked.append(path)
        return ""

    table = [mount(1, 0, "/net", kind="nfs4"), mount(2, 0, "/disk/x")]
    assert resolve("/net/deep/x", table, link_target, lambda kind: kind == "nfs4") == "/net/deep/x"
    assert resolve("/disk/x", table, link_target, lambda kind: kind == "nfs4") == "/disk/x"
    assert asked == ["/disk"]


def test_the_own_table_is_read_and_that_of_a_process_that_is_gone_is_empty() -> None:
    assert {"/", "/proc"} <= {one.point for one in read_mounts()}
    assert read_mounts("0") == []
