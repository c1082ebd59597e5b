"""Generated resource files: what they say, who may read them, what they never overwrite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication.config import Handlers, Host, MirrorOptions, find
from replication.errors import ConfigError, Refusal
from replication.generate import Existing, Files, render, write
from replication.protocol.options import Fencing, Takeover
from tests.replication.resource_strategies import FILE, names, printable

ALPHA = Host("alpha", "10.0.0.1", 7330, 0, "/dev/vg/shop")
BETA = Host("beta", "10.0.0.2", 7330, 0, "/dev/vg/shop")
HANDLERS = Handlers(fence_peer="/usr/lib/fence --now", unfence_peer="/usr/lib/unfence")


def shop(directory: Path, secret: str = "") -> Files:
    return render("shop", (ALPHA, BETA), directory=directory, secret=secret)


def test_a_dead_peer_is_noticed_soon_and_peers_prove_who_they_are() -> None:
    net = render("shop", (ALPHA, BETA)).resource.net
    assert (net.ping_interval_s, net.connect_interval_s, net.timeout_s) == (1.0, 1.0, 2.0)
    assert net.hmac_algorithm == "sha256"
    assert len(net.shared_secret) == 48
    assert net.fencing is Fencing.DONT_CARE


def test_no_two_resources_have_one_secret_unless_it_is_given() -> None:
    secrets = {render("shop", (ALPHA, BETA)).resource.net.shared_secret for _ in range(20)}
    assert len(secrets) == 20
    assert render("shop", (ALPHA, BETA), secret="given").resource.net.shared_secret == "given"


def test_fencing_comes_with_its_handlers() -> None:
    files = render("shop", (ALPHA, BETA), fencing=Fencing.RESOURCE_AND_STONITH, handlers=HANDLERS)
    assert files.resource.net.fencing is Fencing.RESOURCE_AND_STONITH
    assert files.resource.handlers == HANDLERS
    assert files.resource.warnings == ()


def test_what_was_written_is_found(tmp_path: Path) -> None:
    mirror = MirrorOptions(takeover=Takeover.CONSISTENT)
    directory = tmp_path / "etc" / "mirror.d"
    files = render(
        "shop",
        (ALPHA, BETA),
        fencing=Fencing.RESOURCE_AND_STONITH,
        handlers=HANDLERS,
        mirror=mirror,
        directory=directory,
    )
    assert not directory.exists(), "rendering writes nothing"
    path = write(files)
    found = find("shop", directory)
    assert found == files.resource
    assert (found.mirror, found.hosts, found.warnings) == (mirror, (ALPHA, BETA), ())
    assert path == directory / "shop.res"


def test_only_root_reads_the_secret_and_nothing_else_is_left_behind(tmp_path: Path) -> None:
    write(shop(tmp_path))
    assert [(path.name, path.stat().st_mode & 0o777) for path in tmp_path.iterdir()] == [("shop.res", 0o600)]


def test_a_file_that_is_there_is_kept_unless_asked_otherwise(tmp_path: Path) -> None:
    write(shop(tmp_path, secret="old"))
    with pytest.raises(Refusal, match=r"shop\.res: is there already"):
        write(shop(tmp_path, secret="new"))
    assert find("shop", tmp_path).net.shared_secret == "old"
    write(shop(tmp_path, secret="new"), existing=Existing.REPLACE)
    assert find("shop", tmp_path).net.shared_secret == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_options_of_a_resource_that_was_there_before_do_not_live_on(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text("takeover = 'broken")
    with pytest.raises(Refusal, match=r"shop\.toml"):
        write(shop(tmp_path))
    write(shop(tmp_path), existing=Existing.REPLACE)
    assert find("shop", tmp_path).mirror == MirrorOptions()


@pytest.mark.parametrize(
    ("host", "message"),
    [
        (replace(BETA, address="beta.example"), "'beta.example' does not appear to be an IPv4 or IPv6 address"),
        (replace(BETA, address=ALPHA.address), r"both hosts have the address 10\.0\.0\.1:7330"),
        (replace(BETA, port=0), "port 0 is out of range"),
        (replace(BETA, name="alpha"), 'host "alpha" a second time'),
        (replace(BETA, disk="vg/shop"), "is not a path from the root"),
        (replace(BETA, disk="/dev/x\n"), "cannot be printed"),
        (replace(BETA, minor=2**20), "minor 1048576 is out of range"),
    ],
)
def test_what_could_not_be_read_again_is_not_made(host: Host, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        render("shop", (ALPHA, host))


@pytest.mark.parametrize("name", ["all", "a b", "../shop", "a/b", ""])
def test_a_name_that_no_resource_can_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a resource"):
        render(name, (ALPHA, BETA))


@settings(max_examples=60, deadline=None)
@given(names, st.lists(names, min_size=2, max_size=2, unique=True), printable, printable)
def test_strange_names_paths_and_commands_survive(name: str, hosts: list[str], path: str, command: str) -> None:
    pair = (replace(ALPHA, name=hosts[0], disk="/" + path), replace(BETA, name=hosts[1]))
    files = render(name, pair, handlers=Handlers(fence_peer=command), directory=FILE.parent)
    assert files.resource.name == name
    assert files.resource.hosts == pair
    assert files.resource.handlers.fence_peer == command
