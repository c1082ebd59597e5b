from __future__ import annotations

import contextlib
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.supervision.command_line import CommandLine, parse
from agents.supervision.surroundings import Assignments, FileMask, Path


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("/opt/db/run", ["/opt/db/run"]),
        ("run  -p   80", ["run", "-p", "80"]),
        ("run 'two words' \"and more\"", ["run", "two words", "and more"]),
        ("run a\\ b '' \"\"", ["run", "a b", "", ""]),
        ("run --name='x y'z", ["run", "--name=x yz"]),
        ('run \'$HOME\' "a\\"b" \\$x', ["run", "$HOME", 'a"b', "$x"]),
        ("run a#b a~b --level=3 {}", ["run", "a#b", "a~b", "--level=3", "{}"]),
        ('run "it\'s"', ["run", "it's"]),
    ],
)
def test_plain_commands_are_split_without_a_shell(text: str, arguments: list[str]) -> None:
    invocation = parse(text)
    assert (list(invocation.arguments), invocation.uses_shell) == (arguments, False)


@pytest.mark.parametrize(
    "text",
    [
        "run | tee log", "run > log", "run < in", "a && b", "a; b", "run $HOME", 'run "$HOME"', "run `id`", "run *.db",
        "run ~/x", "run # why", "(run)", "PORT=80 run", "! run", 'run "`id`"', "run [ab]",
    ],
)  # fmt: skip
def test_what_only_a_shell_understands_goes_to_a_shell_whole(text: str) -> None:
    invocation = parse(text)
    assert (invocation.arguments, invocation.uses_shell) == (("/bin/sh", "-c", text), True)


@pytest.mark.parametrize("text", ["run 'open", 'run "open', "run \\"])
def test_an_unfinished_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse(text)


def test_nothing_to_run_is_false() -> None:
    assert not CommandLine("x", "y").absent()
    assert not parse("  ")


@given(st.lists(st.text(), min_size=1))
def test_any_arguments_quoted_for_a_shell_come_back_unchanged(words: list[str]) -> None:
    assert list(parse("run " + shlex.join(words)).arguments) == ["run", *words]


@given(st.text())
def test_no_text_breaks_the_parser(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse(text).uses_shell in (True, False)


def test_assignments_take_quoted_values() -> None:
    assert Assignments("x").convert("A=1 B='x y' C=") == {"A": "1", "B": "x y", "C": ""}
    for wrong in ("A", "1A=2", "=x"):
        with pytest.raises(ValueError, match="NAME=value"):
            Assignments("x").convert(wrong)


def test_masks_are_octal_and_paths_absolute() -> None:
    assert FileMask("x").convert("027") == 0o27
    with pytest.raises(ValueError, match="octal"):
        FileMask("x").convert("8")
    with pytest.raises(ValueError, match="absolute"):
        Path("x").convert("run/x")
