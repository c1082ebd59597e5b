"""Any resource, for property tests; and texts that are almost configuration files."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from hypothesis import strategies as st

from replication.config import DiskOptions, Handlers, Host, MirrorOptions, NetOptions, Resource
from replication.protocol.options import AfterSplitBrain, Fencing

FILE = Path("/nowhere/r0.res")

names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True).filter(lambda name: name != "all")
printable = st.text(st.characters(min_codepoint=32, max_codepoint=0x17F), max_size=60).filter(str.isprintable)
printable |= st.sampled_from(["disk", '"', "\\", 'a "quoted" \\word', "a#b", "yes", "{", "x;y", "\\\\"])
digests = st.sampled_from(["md5", "sha1", "sha224", "sha256", "sha384", "sha512"])
tenths = st.integers(1, 300).map(lambda count: count / 10)
whole_seconds = st.integers(1, 120).map(float)
rates = st.integers(2, 8388608).map(lambda sectors: sectors * 512)

disk_options = st.builds(
    DiskOptions,
    al_extents=st.integers(67, 65534),
    resync_rate_bytes_per_s=rates,
    resync_rate_max_bytes_per_s=rates | st.just(0),
    resync_plan_ahead_s=tenths | st.just(0.0),
)
handlers = st.builds(Handlers, fence_peer=printable, unfence_peer=printable, split_brain=printable)


@st.composite
def net_options(draw: st.DrawFn) -> NetOptions:
    secret = draw(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=63))
    after = AfterSplitBrain
    return NetOptions(
        timeout_s=draw(st.integers(1, 600)) / 10,
        connect_interval_s=draw(whole_seconds),
        ping_interval_s=draw(whole_seconds),
        ping_timeout_s=draw(tenths),
        ko_count=draw(st.integers(0, 200)),
        max_epoch_size=draw(st.integers(1, 20000)),
        send_buffer_bytes=draw(st.integers(0, 10485760)),
        receive_buffer_bytes=draw(st.integers(0, 10485760)),
        hmac_algorithm=draw(digests) if secret else "",
        shared_secret=secret,
        after_sb_0pri=draw(st.sampled_from(list(after)[:7])),
        after_sb_1pri=draw(st.sampled_from([after.DISCONNECT, after.CONSENSUS, after.DISCARD_SECONDARY])),
        after_sb_2pri=draw(st.sampled_from([after.DISCONNECT, after.VIOLENTLY_AS0P, after.CALL_PRI_LOST_AFTER_SB])),
        fencing=draw(st.sampled_from(Fencing)),
        verify_algorithm=draw(digests | st.sampled_from(["", "crc32c"])),
        use_rle=draw(st.booleans()),
    )


@st.composite
def resources(draw: st.DrawFn) -> Resource:
    disk = draw(disk_options)
    family = draw(st.sampled_from([st.ip_addresses(v=4), st.ip_addresses(v=6)]))
    addresses = family.filter(lambda ip: not ip.is_multicast and not ip.is_unspecified)
    ends = draw(st.lists(st.tuples(addresses, st.integers(1, 65535)), min_size=2, max_size=2, unique=True))
    host_names = draw(st.lists(names, min_size=2, max_size=2, unique=True))
    node_ids = draw(st.sampled_from([(None, None), (0, 1), (5, 3)]))
    hosts = tuple(
        draw(_hosts(name, ip, port, node_id, disk))
        for name, (ip, port), node_id in zip(host_names, ends, node_ids, strict=True)
    )
    return Resource(
        name=draw(names),
        file=FILE,
        hosts=(hosts[0], hosts[1]),
        net=draw(net_options()),
        disk=disk,
        handlers=draw(handlers),
        mirror=draw(st.builds(MirrorOptions)),
    )


@st.composite
def _hosts(
    draw: st.DrawFn,
    name: str,
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
    port: int,
    node_id: int | None,
    disk: DiskOptions,
) -> Host:
    minor = draw(st.integers(0, 1048575))
    own = draw(st.none() | disk_options)
    return Host(
        name=name,
        address=str(ip),
        port=port,
        minor=minor,
        disk="/" + draw(printable),
        device_name=draw(st.sampled_from(["", f"/dev/drbd{minor}", "/dev/drbd_of-its-own"])),
        node_id=node_id,
        disk_options=own if own != disk else None,
    )


_WORDS = """
    resource r0 on alpha beta net disk handlers common skip volume 0 yes { } ; " # device minor address 10.0.0.1:7330
    meta-disk internal timeout no-use-rle shared-secret connection host port ipv6 [ ]:1 /dev/x \\ global options quorum
    include al-extents 1K protocol C floating path 999999999999999999999999999999
"""

almost_configuration = st.lists(st.sampled_from([*_WORDS.split(), "\n"]), max_size=40).map(" ".join)
