"""The meta-data is what several strict readers accept, and says what the class says."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from lxml import etree

from agents.install import find_agents
from agents.ocf.agent import Agent, action
from agents.ocf.exit_code import SUCCESS, OcfExit
from agents.ocf.parameter import Choice, Integer, Seconds, Text

DTD_DIRECTORY = Path("/usr/share/resource-agents")


class Awkward(Agent):
    """Keeps "a & b" < c lit.

    Second paragraph: 灯.
    """

    place = Text('Where <it> is & "was"', required=True, unique=True, unique_group="g")
    watts = Integer("watts", default=3, minimum=1, reloadable=True)
    mode = Choice("Mode", "A long text.", options=("a", "b"), default="a")
    wait = Seconds("Wait", default="2s")
    key = Text("Key", private=True)

    @action(timeout_s=20)
    def start(self) -> OcfExit:
        return SUCCESS

    @action(timeout_s=20, interval_s=10, depth=0)
    @action(timeout_s=20, interval_s=11, role="Promoted")
    def monitor(self) -> OcfExit:
        return SUCCESS

    @action(timeout_s=7)
    def reload_agent(self) -> OcfExit:
        return SUCCESS


ALL = [Awkward, *find_agents()]


@pytest.mark.parametrize("agent", ALL)
def test_the_document_is_valid_by_the_dtd_that_ocf_tester_uses(agent: type[Agent]) -> None:
    assert DTD_DIRECTORY.is_dir(), "apt-get install resource-agents"
    done = subprocess.run(
        ["xmllint", "--noout", "--valid", "-"],
        input=agent.render_metadata(),
        cwd=DTD_DIRECTORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("agent", ALL)
def test_the_document_can_be_parsed_as_decoded_text_as_crmsh_does(agent: type[Agent]) -> None:
    text = agent.render_metadata()
    assert "encoding=" not in text.splitlines()[0]
    assert etree.fromstring(text).get("name") == agent.__name__


@pytest.mark.parametrize("agent", ALL)
def test_every_parameter_has_the_texts_that_readers_demand(agent: type[Agent]) -> None:
    for parameter in etree.fromstring(agent.render_metadata()).iter("parameter"):
        assert [child.tag for child in parameter] == ["longdesc", "shortdesc", "content"]
        long, short = parameter[0].text, parameter[1].text
        assert short not in (long, parameter.get("name")) or agent is Awkward
        assert long.endswith(".")


def test_the_document_says_what_the_class_says() -> None:
    root = etree.fromstring(Awkward.render_metadata())
    assert root.findtext("version") == "1.1"
    assert root.findtext("shortdesc") == 'Keeps "a & b" < c lit'
    assert "灯" in root.findtext("longdesc", "")
    place, watts, mode, wait, key = root.iter("parameter")
    assert dict(place.attrib) == {"name": "place", "required": "1", "unique": "1", "unique-group": "g"}
    assert place.findtext("shortdesc") == 'Where <it> is & "was"'
    assert dict(watts.attrib) == {"name": "watts", "reloadable": "1"}
    assert dict(watts[2].attrib) == {"type": "integer", "default": "3"}
    assert mode.findtext("longdesc") == "A long text. One of: a, b."
    assert wait[2].get("type") == "time"
    assert key.get("private") == "1"


def test_actions_come_in_the_customary_order_with_all_their_rows() -> None:
    rows = [dict(action.attrib) for action in etree.fromstring(Awkward.render_metadata()).iter("action")]
    assert rows == [
        {"name": "start", "timeout": "20s"},
        {"name": "monitor", "timeout": "20s", "interval": "10s", "depth": "0"},
        {"name": "monitor", "timeout": "20s", "interval": "11s", "role": "Promoted"},
        {"name": "reload-agent", "timeout": "7s"},
        {"name": "validate-all", "timeout": "10s"},
        {"name": "meta-data", "timeout": "10s"},
    ]
