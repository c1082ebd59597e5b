"""What the configuration may say, and what an agent then reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.ocf.agent import Agent, action
from agents.ocf.exit_code import ERR_CONFIGURED, SUCCESS, OcfExit, ParameterError
from agents.ocf.parameter import Boolean, Choice, Integer, Milliseconds, Seconds, Text, Words, duration_ms


class Lamp(Agent):
    """Keeps one lamp lit."""

    socket = Text("Wall socket", required=True, unique=True)
    watts = Integer("Power", default=40, minimum=1, maximum=100)
    dim = Boolean("Half light", default=False)
    colour = Choice("Colour", options=("white", "red"), default="white")
    glow = Seconds("Afterglow", default="2s")
    fade = Milliseconds("Fading", default="200ms", minimum="10ms")
    patience = Seconds("Patience; 0 = derived")
    rooms = Words("Rooms")
    code = Text("Code", private=True)

    @action(timeout_s=5)
    def stop(self) -> OcfExit:
        assert self.watts == 40
        return SUCCESS


def lamp(**values: str) -> Lamp:
    return Lamp({"OCF_RESKEY_socket": "east", **{f"OCF_RESKEY_{name}": value for name, value in values.items()}})


def test_defaults_are_applied_by_the_agent_since_no_manager_does() -> None:
    agent = lamp()
    assert (agent.watts, agent.dim, agent.colour, agent.glow, agent.fade) == (40, False, "white", 2.0, 200)
    assert (agent.patience, agent.rooms, agent.code) == (0, (), "")


def test_an_empty_value_counts_as_not_set() -> None:
    assert lamp(watts="", colour="  ").watts == 40


def test_values_arrive_converted() -> None:
    agent = lamp(watts="60", dim="ON", colour="RED", glow="1500ms", fade="1s", rooms="a, b c")
    assert (agent.watts, agent.dim, agent.colour, agent.glow, agent.fade) == (60, True, "red", 1.5, 1000)
    assert agent.rooms == ("a", "b", "c")


@pytest.mark.parametrize("word", ["yes", "TRUE", "1", "On", "ja"])
def test_all_customary_words_for_true_are_understood(word: str) -> None:
    assert lamp(dim=word).dim is True


@pytest.mark.parametrize(
    ("name", "value", "fact"),
    [
        ("watts", "many", "must be a whole number, not 'many'"),
        ("watts", "0", "must be 1 to 100, not '0'"),
        ("watts", "٣", "must be a whole number, not '٣'"),
        ("dim", "perhaps", "must be yes or no, not 'perhaps'"),
        ("colour", "blue", "must be one of: white, red, not 'blue'"),
        ("glow", "-1", "must be a duration such as 500ms, 30s, 2m or PT30S, not '-1'"),
        ("glow", "2h", "must be 0 to 1h, not '2h'"),
        ("code", "a\nb", "must be one line"),
    ],
)
def test_a_value_of_the_wrong_type_names_the_parameter_and_what_it_must_be(name: str, value: str, fact: str) -> None:
    agent = lamp(**{name: value})
    with pytest.raises(ParameterError) as caught:
        agent.value_of(getattr(Lamp, name))
    assert caught.value.reason == f"parameter {name} {fact}"
    assert caught.value.exit == ERR_CONFIGURED


def test_a_private_value_is_not_repeated_in_the_reason() -> None:
    agent = lamp(code="secret\nword")
    with pytest.raises(ParameterError) as caught:
        assert agent.code
    assert "secret" not in caught.value.reason


def test_stop_goes_on_with_the_default_when_a_value_is_broken() -> None:
    assert lamp(watts="many").perform("stop") == (SUCCESS, "")


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("30", 30_000),
        ("30s", 30_000),
        ("500ms", 500),
        ("2m", 120_000),
        ("1.5s", 1500),
        ("PT30S", 30_000),
        ("PT1H1M1S", 3_661_000),
        ("P1M", 60_000),
        ("2 min", 120_000),
        ("0", 0),
        ("1h", 3_600_000),
    ],
)
def test_durations_are_understood_with_and_without_unit(text: str, ms: int) -> None:
    assert duration_ms(text, "s") == ms


@pytest.mark.parametrize("text", ["", "s", "1x", "1s2m", "1..5", "PT", "PT30", "-1s", "1 2", ".s", "٣s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        duration_ms(text, "s")


def test_a_number_beyond_all_bounds_is_refused_as_any_other_malformed_one() -> None:
    with pytest.raises(ValueError, match="duration"):
        duration_ms("9" * 400, "s")


@given(st.text(max_size=12))
def test_no_text_makes_a_parameter_fail_in_an_unforeseen_way(text: str) -> None:
    agent = lamp()
    for parameter in agent.parameters():
        complaint = "must be"
        try:
            parameter.convert(text)
        except ValueError as error:
            complaint = str(error)
        assert complaint.startswith("must be")
