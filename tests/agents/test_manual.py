from __future__ import annotations

import shutil
import subprocess

import pytest

from agents import manual
from agents.application import Application
from agents.filesystem import Filesystem
from agents.install import find_agents, wanted_files
from agents.ocf.agent import Agent
from agents.virtual_ip import VirtualIP


@pytest.mark.parametrize("agent", [VirtualIP, Application, Filesystem])
def test_the_manual_names_every_parameter_and_action_of_the_class(agent: type[Agent]) -> None:
    page = manual.render(agent)
    for parameter in agent.parameters():
        assert f".B {parameter.name}\n" in page
    for name in agent.actions():
        assert f".B {manual.roff(name)}" in page


def test_the_example_says_how_a_deeper_monitor_is_asked_for() -> None:
    example = manual.render(Filesystem).partition(".SH EXAMPLE")[2]
    assert "op monitor interval=20s timeout=40s op monitor interval=60s timeout=40s OCF_CHECK_LEVEL=10 " in example


def test_text_that_looks_like_a_request_stays_text() -> None:
    assert manual.roff(".conf files\na\\b x-y") == "\\&.conf files\na\\eb x\\-y"


def test_man_itself_reads_every_page_without_a_complaint() -> None:
    assert shutil.which("man"), "apt-get install man-db"
    pages = {name: content for name, (content, _) in wanted_files().items() if "/man/" in name}
    assert len(pages) == len(find_agents()) + 1
    for name, content in pages.items():
        done = subprocess.run(
            ["man", "--warnings", "--local-file", "-"],
            input=content,
            capture_output=True,
            check=True,
            env={"LC_ALL": "C.UTF-8"},
        )
        assert done.stderr == b"", name
        assert b"EXAMPLE" in done.stdout
