"""The files are DRBD's: drbdadm (drbd-utils) takes what we write, and reads what it takes as we do."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from replication.config import Handlers, Host, MirrorOptions, Resource, dump, read_text
from replication.generate import render, write
from replication.protocol.options import Fencing, Takeover
from tests.replication.resource_strategies import resources

HOSTS = "on alpha { address 10.0.0.1:7330; } on beta { address 10.0.0.2:7330; }"
VOLUME = "device minor 0; disk /dev/vg/r0; meta-disk internal;"
WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
"""Each example starts a program."""


def drbdadm_dump(file: Path) -> str:
    """What drbdadm understood. It runs under a host name that is in no file: else it looks for the addresses here."""
    for program, package in {"drbdadm": "drbd-utils", "unshare": "util-linux", "hostname": "hostname"}.items():
        assert shutil.which(program), f"{program} is missing: apt-get install {package}"
    done = subprocess.run(
        ["unshare", "--uts", "sh", "-c", 'hostname nowhere.invalid && exec drbdadm -c "$0" dump', str(file)],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace") + file.read_text()
    return done.stdout.decode()


def without_node_ids(resource: Resource) -> Resource:
    """drbdadm numbers nodes that have no number."""
    first, second = (replace(host, node_id=None) for host in resource.hosts)
    return replace(resource, hosts=(first, second))


def test_drbdadm_accepts_what_is_generated(tmp_path: Path) -> None:
    files = render(
        "shop",
        (Host("alpha", "10.0.0.1", 7330, 0, "/dev/vg/shop"), Host("beta", "10.0.0.2", 7330, 0, "/dev/my vg/shop")),
        fencing=Fencing.RESOURCE_AND_STONITH,
        handlers=Handlers(fence_peer="/usr/lib/fence --now", unfence_peer='/usr/lib/unfence "quoted"'),
        mirror=MirrorOptions(takeover=Takeover.CONSISTENT),
        directory=tmp_path,
    )
    path = write(files)
    [theirs] = read_text(drbdadm_dump(path), path)
    assert without_node_ids(theirs) == files.resource


def test_drbdadm_accepts_ipv6(tmp_path: Path) -> None:
    hosts = (Host("alpha", "fd00::1", 7330, 0, "/dev/x"), Host("beta", "fd00::2", 7330, 0, "/dev/x"))
    path = write(render("shop", hosts, directory=tmp_path))
    assert "ipv6 [fd00::1]:7330" in drbdadm_dump(path)


@settings(
    max_examples=25,
    deadline=None,
    phases=WITHOUT_SHRINKING,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(resources())
def test_drbdadm_accepts_every_dump_and_reads_it_as_we_do(tmp_path: Path, resource: Resource) -> None:
    file = tmp_path / "r0.res"
    file.write_text(dump(resource))
    [theirs] = read_text(drbdadm_dump(file), file, resource.mirror)
    assert without_node_ids(theirs) == without_node_ids(resource)


@pytest.mark.parametrize(
    "text",
    [
        f"resource r0{{net{{timeout 20;}}{HOSTS}{VOLUME}}}",
        f'resource "r0" {{ protocol C; net {{ timeout "20"; use-rle; }} {HOSTS} {VOLUME} }}',
        f"resource r0 {{ net {{ no-use-rle; no-tcp-cork; always-asbp no; timeout\n020\n; }} {HOSTS} {VOLUME} }}",
        f"resource r0 {{ disk {{ no-md-flushes; resync-rate 2048s; c-max-rate 1m; }} {HOSTS} {VOLUME} }}",
        f"resource r0 {{ net {{ sndbuf-size 1M; rcvbuf-size 3s; }} {HOSTS} {VOLUME} }}",
        f'resource r0 {{ # comment }} " ;\n\t{HOSTS}\r\n{VOLUME} }}',
        f'resource r0 {{ handlers {{ fence-peer "a # \\"b\\" \\\\ \\c"; }} {HOSTS} {VOLUME} }}',
        f'resource r0 {{ handlers {{ outdate-peer "x"; }} {HOSTS} {VOLUME} }}',
        f"resource r0 {{ volume 0 {{ disk {{ al-extents 257; }} {VOLUME} }} {HOSTS} }}",
        "resource r0 { volume 0 { disk /dev/x; flexible-meta-disk internal; }"
        " on alpha { volume 0 { device minor 1; } address 10.0.0.1 : 1; }"
        " on beta { volume 0 { device drbd7; } address ipv4 10.0.0.2:1; } }",
        f"resource r0 {{ device /dev/drbd_shop minor 3; disk /dev/x; {HOSTS} }}",
        f"resource r0 {{ {HOSTS.replace('alpha', chr(34) + 'disk' + chr(34))} {VOLUME} }}",
        f"resource r0 {{ {HOSTS.replace('address', 'disk { al-extents 300; } address', 1)} {VOLUME} }}",
        "global { usage-count no; } skip resource r1 { x y; { } }"
        f" resource r0 {{ skip net {{ a; }} {HOSTS} {VOLUME} }}",
        f"resource r0 {{ net {{ timeout 30; }} {HOSTS} {VOLUME} }} common {{ net {{ timeout 20; ping-int 2; }} }}",
        f"resource r0 {{ connection-mesh {{ hosts alpha beta; net {{ timeout 20; }} }} {HOSTS} {VOLUME} }}",
        f"resource r0 {{ {VOLUME} on alpha {{ node-id 0; }} on beta {{ node-id 1; }} net {{ timeout 30; }}"
        " connection { host alpha address 10.0.0.1:7789; host beta address 10.0.0.2:7789; net { timeout 20; } } }",
        f"resource r0 {{ {VOLUME} on alpha {{ node-id 0; }} on beta {{ node-id 1; }} connection {{"
        " path { host alpha address ipv6 [fd00::1%eth0]:1; host beta address ipv6 [ fd00::2 ] : 2; } } }",
    ],
)
def test_odd_spellings_mean_the_same_to_both(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r0.res"
    file.write_text(text)
    [ours] = read_text(text, file)
    [theirs] = read_text(drbdadm_dump(file), file)
    assert without_node_ids(theirs) == without_node_ids(ours)


def test_drbdadm_includes_as_we_do(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "common.conf").write_text("common { net { timeout 20; } }")
    file = tmp_path / "r0.res"
    file.write_text(f'include "parts/*.conf";\ninclude "none/*.conf";\nresource r0 {{ {HOSTS} {VOLUME} }}')
    [ours] = read_text(file.read_text(), file)
    [theirs] = read_text(drbdadm_dump(file), file)
    assert ours.net.timeout_s == theirs.net.timeout_s == 2.0
