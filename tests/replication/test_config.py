"""Resource files: what is understood, what is refused, and that every refusal says where and what was meant."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from replication.config import (
    BackingIo,
    DeviceKind,
    MirrorOptions,
    OnReturn,
    Resource,
    Reverse,
    all_resources,
    dump,
    dump_mirror,
    find,
    read_file,
    read_text,
)
from replication.errors import ConfigError, MirrorError, Unavailable
from replication.mirror_options import parse_mirror_options
from replication.protocol.options import AfterSplitBrain, Fencing, Takeover
from tests.replication.resource_strategies import FILE, almost_configuration, resources

HOSTS = """
    on alpha { device minor 0; disk /dev/vg/a; meta-disk internal; address 10.0.0.1:7330; }
    on beta  { device minor 0; disk /dev/vg/b; meta-disk internal; address 10.0.0.2:7330; }
"""


def understood(inside: str, before: str = "", hosts: str = HOSTS) -> Resource:
    """The resource r0 with `inside` on line 2, after `before` on line 1."""
    [resource] = read_text(f"{before} resource r0 {{\n{inside}\n{hosts}}}", FILE)
    return resource


def refused(inside: str, before: str = "", hosts: str = HOSTS) -> str:
    with pytest.raises(ConfigError) as caught:
        understood(inside, before, hosts)
    return str(caught.value)


# what is understood


def test_a_plain_file_gives_two_hosts_and_drbds_defaults() -> None:
    resource = understood("")
    alpha, beta = resource.hosts
    assert (alpha.name, alpha.address, alpha.port, alpha.minor, alpha.disk) == (
        "alpha",
        "10.0.0.1",
        7330,
        0,
        "/dev/vg/a",
    )
    assert resource.local("beta") is beta
    assert resource.peer("beta") is alpha
    options = resource.volume_options("alpha")
    assert (options.timeout_s, options.ping_interval_s, options.ko_count) == (6.0, 10.0, 7)
    assert (options.peer_name, options.resync_rate_max) == ("beta", 100 * 1024 * 1024)
    assert resource.warnings == ()


def test_every_unit_becomes_seconds_or_bytes() -> None:
    resource = understood(
        "net { timeout 20; ping-timeout 7; connect-int 3; sndbuf-size 1M; rcvbuf-size 4s; }"
        "disk { resync-rate 10M; c-max-rate 300; c-plan-ahead 0; }"
    )
    assert (resource.net.timeout_s, resource.net.ping_timeout_s, resource.net.connect_interval_s) == (2.0, 0.7, 3.0)
    assert (resource.net.send_buffer_bytes, resource.net.receive_buffer_bytes) == (1024 * 1024, 2048)
    assert resource.disk.resync_rate_bytes_per_s == 10 * 1024 * 1024
    assert resource.disk.resync_rate_max_bytes_per_s == 300 * 1024
    assert resource.volume_options("alpha").resync_rate_max == 10 * 1024 * 1024, "no plan ahead: the fixed rate counts"


def test_a_boolean_has_four_spellings() -> None:
    spellings = {"use-rle yes;": True, "use-rle no;": False, "use-rle;": True, "no-use-rle;": False}
    assert {text: understood(f"net {{ {text} }}").net.use_rle for text in spellings} == spellings


def test_the_inner_section_wins() -> None:
    common = "common { net { timeout 30; ping-int 3; } disk { al-extents 100; resync-rate 1M; c-max-rate 1M; } }"
    resource = understood(
        "net { timeout 20; } disk { al-extents 200; }",
        before=common,
        hosts=HOSTS.replace("on alpha {", "on alpha { disk { al-extents 300; }"),
    )
    assert (resource.net.timeout_s, resource.net.ping_interval_s) == (2.0, 3.0)
    assert resource.volume_options("alpha").al_extents == 300
    assert resource.volume_options("beta").al_extents == 200
    assert resource.volume_options("alpha").resync_rate_max == 1024 * 1024


def test_common_counts_wherever_it_stands() -> None:
    [resource] = read_text(f"resource r0 {{ {HOSTS} }} common {{ handlers {{ fence-peer /x; }} }}", FILE)
    assert resource.handlers.command("fence-peer") == "/x"


@pytest.mark.parametrize(
    "inside",
    [
        "device minor 4; disk /dev/x; meta-disk internal;",
        "volume 0 { device minor 4; disk /dev/x; meta-disk internal; }",
        "volume 0 { device /dev/drbd4 minor 4; disk /dev/x; }",
        "device drbd4; disk /dev/x; flexible-meta-disk internal;",
    ],
)
def test_the_one_volume_may_be_implicit_and_stand_with_the_resource(inside: str) -> None:
    resource = understood(inside, hosts="on a { address 10.0.0.1:1; } on b { address 10.0.0.2:1; }")
    assert [(host.minor, host.disk) for host in resource.hosts] == [(4, "/dev/x"), (4, "/dev/x")]


def test_the_one_volume_may_stand_with_each_host() -> None:
    resource = understood(
        "volume 0 { disk /dev/x; disk { al-extents 77; } }",
        hosts="on a { volume 0 { device minor 1; } address 10.0.0.1:1; }"
        "on b { volume 0 { device minor 2; disk /dev/y; } address 10.0.0.2:1; }",
    )
    assert [(host.minor, host.disk) for host in resource.hosts] == [(1, "/dev/x"), (2, "/dev/y")]
    assert resource.disk.al_extents == 77


def test_addresses_are_ipv4_or_ipv6() -> None:
    resource = understood(
        "device minor 0; disk /dev/x;",
        hosts="on a { address ipv6 [fe80::1%eth0]:1; } on b { address ipv6 [ FD00::0:2 ] : 7330; }",
    )
    assert [(host.address, host.port) for host in resource.hosts] == [("fe80::1%eth0", 1), ("fd00::2", 7330)]


def test_a_connection_section_may_hold_addresses_and_options() -> None:
    resource = understood(
        "device minor 0; disk /dev/x; net { timeout 30; }"
        "connection { host a address 10.0.0.1:5; host b address ipv4 10.0.0.2:6; net { timeout 20; } }",
        hosts="on a { node-id 0; } on b { node-id 1; }",
    )
    assert [(host.address, host.port, host.node_id) for host in resource.hosts] == [
        ("10.0.0.1", 5, 0),
        ("10.0.0.2", 6, 1),
    ]
    assert resource.net.timeout_s == 2.0


def test_fencing_may_stand_where_drbd_8_4_wants_it() -> None:
    inside = "handlers { outdate-peer /bin/fence; } disk { fencing resource-and-stonith; }"
    resource = understood(inside)
    assert resource.net.fencing is Fencing.RESOURCE_AND_STONITH
    assert resource.handlers.fence_peer == "/bin/fence"


def test_comments_line_breaks_quotes_and_skip_mean_what_they_mean_to_drbdadm() -> None:
    resource = understood(
        'net { # } "\n shared-secret\n "a#\\"b\\\\" ; cram-hmac-alg "sha256"; }\n skip net { timeout foo; x { } }',
        before='skip resource r1 { what { ever; } } skip "x" { }',
    )
    assert resource.net.shared_secret == 'a#"b\\'
    assert resource.net.hmac_algorithm == "sha256"


def test_the_policies_after_split_brain_have_their_numbers() -> None:
    net = understood("net { after-sb-0pri discard-zero-changes; after-sb-1pri consensus; }").net
    assert (net.after_sb_0pri, net.after_sb_1pri) == (AfterSplitBrain.DISCARD_ZERO_CHANGES, AfterSplitBrain.CONSENSUS)


def test_the_secret_is_not_shown_where_an_object_is_logged() -> None:
    assert "hush" not in repr(understood("net { shared-secret hush; cram-hmac-alg sha256; }"))


# dump


@settings(max_examples=150, deadline=None)
@given(resources())
def test_what_is_dumped_is_understood_as_what_it_was(resource: Resource) -> None:
    [again] = read_text(dump(resource), resource.file, parse_mirror_options(dump_mirror(resource.mirror), FILE))
    assert again == resource


def test_a_dump_looks_like_drbdadms() -> None:
    shown = dump(understood("net { timeout 20; } disk { c-max-rate 3s; } handlers { split-brain mail; }"))
    assert "    on alpha {\n        device           minor 0;\n        disk             /dev/vg/a;\n" in shown
    assert "    net {\n        protocol           C;\n        timeout           20;\n    }\n" in shown
    assert "    disk {\n        c-max-rate        3s;\n    }\n" in shown
    assert '    handlers {\n        split-brain      "mail";\n    }\n' in shown


def test_a_dump_shows_as_comments_what_drbdadm_has_no_word_for() -> None:
    mirror = MirrorOptions(takeover=Takeover.CONSISTENT)
    [resource] = read_text(f"resource r0 {{ net {{ csums-alg md5; }} {HOSTS} }}", FILE, mirror)
    shown = dump(resource)
    assert '# r0.toml: takeover = "consistent"\n' in shown
    assert '# warning: /nowhere/r0.res line 1: "csums-alg md5" is ignored: ' in shown


# warnings


def test_what_does_not_matter_here_is_accepted_with_one_warning() -> None:
    inside = "startup { wfc-timeout 5; } net { max-buffers 8000; tcp-cork no; allow-two-primaries no; }"
    warnings = understood(inside, before="global { usage-count no; } common { net { max-buffers 4000; } }").warnings
    assert len(warnings) == 2
    assert warnings[0].startswith('/nowhere/r0.res line 1: "max-buffers 4000" is ignored: ')
    assert warnings[1].startswith('/nowhere/r0.res line 2: "wfc-timeout 5" is ignored: ')


def test_takeover_without_fencing_acts_as_manual_and_says_so() -> None:
    inside = "net { fencing resource-and-stonith; }"
    mirror = MirrorOptions(takeover=Takeover.CONSISTENT)
    [unfenced] = read_text(f"resource r0 {{ {inside} {HOSTS} }}", FILE, mirror)
    assert unfenced.volume_options("alpha").takeover is Takeover.MANUAL
    assert any('takeover "consistent" in r0.toml acts as "manual"' in warning for warning in unfenced.warnings)
    [fenced] = read_text(f"resource r0 {{ {inside} handlers {{ fence-peer /x; }} {HOSTS} }}", FILE, mirror)
    assert fenced.volume_options("alpha").takeover is Takeover.CONSISTENT
    assert fenced.warnings == ()


# refusals


def test_an_unknown_option_is_named_with_file_line_and_the_nearest_known_one() -> None:
    assert refused("disk { resync-rte 10M; }") == (
        '/nowhere/r0.res line 2: unknown option "resync-rte" in section "disk"; did you mean "resync-rate"?'
    )
    assert refused("disk { timeout 10; }").endswith('; it belongs in section "net"')
    assert refused("nett { }").endswith('unknown section "nett" in section "resource"; did you mean "net"?')


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("net { protocol A; }", '"protocol A" is not supported'),
        ("protocol B;", '"protocol B" is not supported'),
        ("net { allow-two-primaries; }", '"allow-two-primaries yes" is not supported: one side is Primary at a time'),
        ("options { quorum majority; }", '"quorum majority" is not supported'),
        ("volume 1 { device minor 1; }", "volume 1; this version mirrors one volume per resource, volume 0"),
        (
            "volume 0 { }\n volume 1 { }",
            "a second volume, the first is on line 2; this version mirrors one volume per resource, volume 0",
        ),
        ("meta-disk /dev/y [0];", "metadata on a device of its own"),
        ("floating 10.0.0.1:1 { }", '"floating" is not supported'),
        ("stacked-on-top-of r1 { }", '"stacked-on-top-of" is not supported'),
        ("syncer { rate 10M; }", "it is DRBD 8.3's"),
        ("on gamma { address 10.0.0.3:1; }", 'resource "r0" has 3 "on" sections (gamma, alpha, beta)'),
        ("volume 0 { disk /dev/x; }", '"device" here and "volume" on line 2 mix explicit and implicit volumes'),
        ("disk none;", "a side without a disk is not supported"),
        ("net { timeout 20; timeout 30; }", 'option "timeout" given twice, first on line 2'),
        ("net { timeout 20; } net { }", 'section "net" a second time, first on line 2'),
        ("net { use-rle; no-use-rle; }", 'option "use-rle" given twice'),
        ("net { timeout 20 }", 'missing ";" after "20"'),
        ("net { timeout 20\n ping-int 3; }", 'missing ";" after "20"'),
        ("net { timeout 20 ping-int 3; }", 'unexpected "ping-int" after "timeout 20"; a missing ";"?'),
        ("net { timeout 20; ", 'section "resource" is not closed'),
        ('net { shared-secret "abc; }', "string does not end on its line"),
        ("net { timeout 700; }", "700 is out of range; allowed: 1 to 600 tenths of a second"),
        ("net { timeout 20x; }", '"20x" is not a number'),
        ("net { use-rle maybe; }", '"maybe" is neither yes nor no'),
        ("net { after-sb-0pri consensus; }", '"consensus" is not known; one of disconnect, discard-younger-primary'),
        ("net { cram-hmac-alg sha256; }", "cram-hmac-alg without shared-secret"),
        ("net { cram-hmac-alg rot13; }", '"rot13" is not known; one of md5, sha1'),
        (f"net {{ shared-secret {'a' * 64}; }}", "longer than 63 bytes"),
        ("device /dev/drbd1 minor 2;", "device /dev/drbd1 has minor 1, not 2"),
        ("device /dev/nbd0 minor 0;", "not called /dev/drbdN"),
        ("disk vg/r0;", "is not a path from the root"),
        ("net { data-integrity-alg a*b; }", "unexpected character '*'; put the value in double quotes"),
        (";", 'expected the name of an option or section, not ";"'),
        ("skip timeout 3;", "skip stands before a statement"),
        ("net { include x; }", "include stands inside a section"),
        ("connection { host alpha; host gamma; }", 'host "gamma" has no "on" section'),
    ],
)
def test_a_refusal_names_the_line_and_the_fact(inside: str, message: str) -> None:
    said = refused(inside)
    assert said.startswith("/nowhere/r0.res line ")
    assert message in said


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("10.0.0.2", "is not an address with a port"),
        ("10.0.0.1:7330", "both hosts have the address 10.0.0.1:7330"),
        ("10.0.0.2:0", "port 0 is out of range"),
        ("10.0.0.2:70000", "port 70000 is out of range"),
        ("10.0.0.256:1", '"10.0.0.256" is not an IP address'),
        ("beta.example:7330", "is not an address with a port"),
        ("[fd00::1]:7330", "write address ipv6 [fd00::1]:7330;"),
        ("ipv6 [fd00::1]:7330", "one host has an IPv4 address, the other an IPv6 one"),
        ("sdp 10.0.0.2:7330", "address family sdp is not supported"),
        ("224.0.0.1:7330", "is not the address of a host"),
    ],
)
def test_an_address_that_nobody_can_reach_is_refused(address: str, message: str) -> None:
    said = refused("", hosts=HOSTS.replace("10.0.0.2:7330", address))
    assert message in said
    assert said.startswith("/nowhere/r0.res line 5: ")


def test_a_host_must_know_all_that_it_needs() -> None:
    for word, missing in {"device minor 0;": "device", "disk /dev/vg/b;": "disk"}.items():
        hosts = HOSTS.replace(word, "", 1) if missing == "disk" else HOSTS.replace(word, "")
        assert f"has no {missing}" in refused("", hosts=hosts)


@pytest.mark.parametrize("name", ["all", '"a b"', "a/b", '"../x"', ".hidden", "-x"])
def test_a_resource_has_a_name_that_can_be_part_of_a_path(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name of a resource"):
        read_text(f"resource {name} {{ {HOSTS} }}", FILE)


def test_a_host_that_is_not_named_learns_who_is() -> None:
    with pytest.raises(ConfigError, match="for this host, gamma; it is for alpha and beta"):
        understood("").local("gamma")


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=200) | almost_configuration | almost_configuration.map(lambda t: f"resource r0 {{ {t} {HOSTS} }}")
)
@example("{" * 5000)
@example("a{" * 5000)
@example("resource r0 { net { timeout ; } }")
@example('include "";')
@example('include "[";')
@example('include "\\/";')
def test_whatever_the_text_only_a_config_error_is_raised(text: str) -> None:
    with suppress(ConfigError):
        read_text(text, FILE)


@settings(deadline=None)
@given(resources(), st.data())
def test_a_damaged_file_raises_nothing_but_a_config_error(resource: Resource, data: st.DataObject) -> None:
    text = dump(resource)
    at = data.draw(st.integers(0, len(text)))
    damaged = text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 5)) :]
    with suppress(ConfigError):
        read_text(damaged, FILE)


# files


def write_resource(directory: Path, name: str, *, minor: int = 0, port: int = 7330, inside: str = "") -> Path:
    path = directory / f"{name}.res"
    hosts = HOSTS.replace("minor 0", f"minor {minor}").replace("7330", str(port))
    path.write_text(f"resource {name} {{ {inside} {hosts.replace('/dev/vg/', f'/dev/vg/{name}-')} }}")
    path.chmod(0o600)
    return path


def test_a_resource_is_found_by_its_file(tmp_path: Path) -> None:
    path = write_resource(tmp_path, "shop")
    (tmp_path / "broken.res").write_text("}")
    resource = find("shop", tmp_path)
    assert (resource.name, resource.file) == ("shop", path)


def test_who_asks_for_a_resource_that_is_not_there_learns_what_is(tmp_path: Path) -> None:
    write_resource(tmp_path, "shop")
    write_resource(tmp_path, "mail")
    with pytest.raises(ConfigError, match=r'"shp", but for mail, shop; did you mean "shop"'):
        find("shp", tmp_path)
    with pytest.raises(ConfigError, match=r"has no \.res files"):
        find("shop", tmp_path / "nowhere")
    with pytest.raises(ConfigError):
        find("../shop", tmp_path)


def test_a_file_that_defines_another_resource_is_told_so(tmp_path: Path) -> None:
    write_resource(tmp_path, "shop").rename(tmp_path / "mail.res")
    with pytest.raises(ConfigError, match=r'mail\.res: defines shop, not "mail"'):
        find("mail", tmp_path)


def test_two_resources_of_one_host_share_nothing(tmp_path: Path) -> None:
    write_resource(tmp_path, "shop")
    mail = write_resource(tmp_path, "mail", minor=1, port=7331)
    assert [resource.name for resource in all_resources(tmp_path)] == ["mail", "shop"]
    write_resource(tmp_path, "mail", minor=1)
    with pytest.raises(ConfigError, match=r'port 7330 of 10\.0\.0\.1 belongs to resource "mail"'):
        all_resources(tmp_path)
    mail.unlink()
    write_resource(tmp_path, "mail", port=7331)
    with pytest.raises(ConfigError, match='minor 0 on alpha belongs to resource "mail"'):
        all_resources(tmp_path)


def test_an_include_is_relative_to_its_file_and_errors_name_the_included_one(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    part = tmp_path / "parts" / "common.conf"
    part.write_text("common {\n net { timeout 20; }\n}")
    path = write_resource(tmp_path, "shop")
    path.write_text(f'include "parts/*.conf"; include "none/*.conf";\n{path.read_text()}')
    assert find("shop", tmp_path).net.timeout_s == 2.0
    part.write_text("common {\n net { timeut 20; }\n}")
    with pytest.raises(ConfigError) as caught:
        find("shop", tmp_path)
    assert (caught.value.file, caught.value.line) == (part, 2)


def test_a_file_that_includes_itself_ends_in_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.res"
    path.write_text('include "x.res";')
    with pytest.raises(ConfigError, match="nested more than 10 deep"):
        read_file(path)
    path.write_text('include "missing.conf";')
    with pytest.raises(ConfigError, match=r'line 1: included file "missing\.conf" does not exist'):
        read_file(path)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"resource \0", None])
def test_what_is_no_text_file_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "r0.res"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"r0\.res"):
        read_file(path)


def test_a_secret_that_others_may_read_is_worth_a_warning(tmp_path: Path) -> None:
    path = write_resource(tmp_path, "shop", inside="net { shared-secret x; cram-hmac-alg sha256; }")
    assert find("shop", tmp_path).warnings == ()
    path.chmod(0o644)
    assert find("shop", tmp_path).warnings == (f"{path}: holds the shared secret and has mode 0644; chmod 600 {path}",)


# NAME.toml


def test_the_toml_beside_the_file_says_what_drbd_has_no_word_for(tmp_path: Path) -> None:
    write_resource(tmp_path, "shop")
    assert find("shop", tmp_path).mirror == MirrorOptions()
    (tmp_path / "shop.toml").write_text(
        'takeover = "consistent"\nreverse = "always"\non-return = "hold"\nbacking_io = "direct"\ndevice = "fuse"\n'
    )
    assert find("shop", tmp_path).mirror == MirrorOptions(
        Takeover.CONSISTENT, Reverse.ALWAYS, OnReturn.HOLD, BackingIo.DIRECT, DeviceKind.FUSE
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\ntakover = 'manual'", 'r0.toml line 2: unknown option "takover"; did you mean "takeover"?'),
        ("takeover = 'always'", "r0.toml line 1: \"takeover\" cannot be 'always'; one of manual, consistent"),
        ("takeover = true", 'r0.toml line 1: "takeover" cannot be True'),
        ("takeover = [1]", 'r0.toml line 1: "takeover" cannot be [1]'),
        ("[device]\nx = 1", 'r0.toml line 1: "device" cannot be '),
        ("on-return = 'auto'\non_return = 'auto'", 'r0.toml line 2: option "on_return" given twice'),
        ("device = 'nbd'\ntakeover", "r0.toml line 2: is not TOML: "),
    ],
)
def test_a_wrong_toml_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_mirror_options(text, Path("r0.toml"))
    assert str(caught.value).startswith(message)


@settings(deadline=None)
@given(st.text(max_size=80) | st.sampled_from(["a = " + "[" * 5000, "a.b = 1", '"\\n" = 1']))
def test_whatever_the_toml_only_a_config_error_is_raised(text: str) -> None:
    with suppress(ConfigError):
        parse_mirror_options(text, Path("r0.toml"))


# errors


def test_every_error_names_object_fact_and_remedy() -> None:
    error = ConfigError(Path("/x/r0.res"), 12, "no", "write yes")
    assert str(error) == "/x/r0.res line 12: no; write yes"
    assert (error.subject, error.fact, error.remedy) == ("/x/r0.res line 12", "no", "write yes")
    assert isinstance(error, MirrorError)
    assert isinstance(Unavailable("mirror r0", "its daemon does not answer"), MirrorError)


def test_the_name_of_the_file_and_the_warnings_make_no_other_resource() -> None:
    resource = understood("")
    assert replace(resource, file=Path("/elsewhere"), warnings=("x",)) == resource
