"""What mirroradm reads and writes without a daemon, and what it says of itself."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from replication.commands import mirroradm
from tests.replication.commands.host import PROJECT, Host

# configuration and metadata


def test_dump_is_what_was_understood(host: Host) -> None:
    done = host.run("dump", "r0")
    assert done.returncode == 0
    assert "resource r0 {" in done.stdout
    assert json.loads(host.run("dump", "all", "-o", "json").stdout)[0]["hosts"][1]["name"] == "beta"
    assert host.run("sh-resources").stdout == "r0\n"


def test_a_single_file_will_do_for_a_configuration(host: Host) -> None:
    file = host.configuration / "r0.res"
    assert host.run("-c", str(file), "sh-resources").stdout == "r0\n"
    done = host.run("-c", str(file), "dump", "r1")
    assert done.returncode == 1
    assert "does not define it" in done.stderr


def test_create_md_makes_metadata_and_overwrites_none_unasked(host: Host) -> None:
    with host.disk.open("wb") as disk:
        disk.truncate(64 * 1024 * 1024)
    before = host.disk.read_bytes()
    done = host.run("create-md", "--dry-run", "r0")
    assert done.stdout == f"write new metadata at the end of {host.disk}, existing: refuse\n"
    assert host.disk.read_bytes() == before
    done = host.run("create-md", "r0")
    assert done.returncode == 0, done.stderr
    assert f"{host.disk}: new metadata; " in done.stderr
    done = host.run("dump-md", "r0")
    assert "current-uuid 0000000000000004;" in done.stdout
    (row,) = json.loads(host.run("dump-md", "all", "-o", "json").stdout)
    assert row["superblock"]["bytes-per-bit"] == 4096


def test_create_md_leaves_the_disk_of_a_running_mirror_alone(host: Host) -> None:
    host.up()
    done = host.run("create-md", "--force", "r0")
    assert done.returncode == 11
    assert "it is up, and uses the disk; mirroradm down r0" in done.stderr


def test_dump_md_of_a_disk_that_is_not_there_says_so(host: Host) -> None:
    done = host.run("dump-md", "r0")
    assert done.returncode == 16
    assert "No such file or directory" in done.stderr


# usage, help, completion, manual


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["explode"],
        ["primary"],
        ["primary", "r0", "--frob"],
        ["primary", "r0/1"],
        ["status", "../r0"],
        ["permit", "r0"],
        ["new-current-uuid", "r0"],
        ["primary", "--force", "--accept-loss=beta", "r0"],
        ["role", "-t", "soon", "r0"],
        ["role", "-t", "nan", "r0"],
    ],
)
def test_wrong_usage_ends_with_one_and_prints_no_data(host: Host, words: list[str]) -> None:
    done = host.run(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert "mirroradm" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_has_examples_for_each_verb(host: Host) -> None:
    assert "examples:" in host.run("-h").stdout
    for verb in ("primary", "status", "completion"):
        assert f"example: mirroradm {verb}" in host.run(verb, "--help").stdout


@pytest.mark.parametrize("example", [row.example for row in mirroradm.VERBS.values()])
def test_each_example_can_be_typed(example: str) -> None:
    parser, _ = mirroradm.make_parser()
    assert parser.parse_args(example.split()).verb == example.split()[0]


def test_bash_completes_verbs_options_and_resources(host: Host, tmp_path: Path) -> None:
    script = tmp_path / "completion"
    script.write_text(host.run("completion", "bash").stdout)
    program = tmp_path / "bin" / "mirroradm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncd {PROJECT}\nexec {shlex.join(host.command())} "$@"\n')
    program.chmod(0o755)

    def complete(*words: str) -> list[str]:
        line = f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; _mirroradm; "
        line += 'printf "%s\\n" "${COMPREPLY[@]}"'
        environment = {"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
        text = f"source {script}; {line}"
        done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True, env=environment)
        assert done.stderr == ""
        return done.stdout.split()

    assert complete("mirroradm", "inv") == ["invalidate", "invalidate-remote"]
    assert complete("mirroradm", "primary", "--acc") == ["--accept-loss"]
    assert complete("mirroradm", "primary", "--force", "") == ["r0", "all"]
    assert complete("mirroradm", "completion", "") == ["bash"]
    assert complete("mirroradm", "-o", "") == ["text", "json"]


def test_the_manual_page_knows_every_verb_and_option_and_has_no_flaw() -> None:
    page = PROJECT / "replication" / "mirroradm.8"
    text = page.read_text().replace("\\-", "-")
    _, verbs = mirroradm.make_parser()
    for verb, parser in verbs.items():
        assert verb in text
        for action in parser._actions:
            assert all(option in text for option in action.option_strings), (verb, action.option_strings)
    warnings = subprocess.run(
        ["man", "-l", "--warnings", str(page)], capture_output=True, text=True, env=os.environ | {"MANWIDTH": "80"}
    )
    assert (warnings.returncode, warnings.stderr) == (0, "")
