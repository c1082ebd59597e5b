"""The judges are judged: each verdict must be able to be "guilty"."""

from __future__ import annotations

from tests.acceptance.observations import Spell, answered_twice, held_twice, outages, spells


def test_a_spell_lasts_as_long_as_every_sample_says_yes() -> None:
    assert spells("alpha", ["1.00 0", "1.05 1", "1.10 1", "1.15 0", "1.20 1"]) == [
        Spell("alpha", 1.05, 1.10),
        Spell("alpha", 1.20, 1.20),
    ]


def test_a_watcher_cut_off_in_the_middle_of_a_line_ends_its_spell() -> None:
    assert spells("alpha", ["1.00 1", "1.05"]) == [Spell("alpha", 1.00, 1.00)]


def test_a_gap_between_samples_ends_a_spell() -> None:
    assert len(spells("alpha", ["1.0 1", "9.0 1"])) == 2


def test_an_address_on_two_nodes_at_once_is_found() -> None:
    assert held_twice([Spell("alpha", 1.0, 5.0), Spell("beta", 4.9, 9.0)])


def test_an_address_that_moved_was_never_held_twice() -> None:
    assert held_twice([Spell("alpha", 1.0, 5.0), Spell("beta", 5.1, 9.0), Spell("alpha", 9.1, 9.5)]) == []


def test_an_overlap_is_found_even_with_a_spell_in_between() -> None:
    assert held_twice([Spell("alpha", 1.0, 9.0), Spell("alpha", 2.0, 2.0), Spell("beta", 8.0, 8.5)])


def test_two_macs_in_answer_to_one_question_are_found() -> None:
    assert answered_twice(["1.000 aa", "1.001 bb"]) == [("1.000 aa", "1.001 bb")]


def test_a_mac_that_changed_between_questions_is_a_switch_not_a_conflict() -> None:
    assert answered_twice(["1.000 aa", "1.100 bb"]) == []


def test_an_outage_runs_from_the_last_answer_to_the_next() -> None:
    lines = ["1.00 1.01 alpha 7", "1.05 1.35 -", "1.40 1.70 -", "1.75 1.76 beta 9", "1.80 1.81 beta 9"]
    (outage,) = outages(lines)
    assert round(outage.duration_s, 2) == 0.75


def test_a_client_that_was_always_served_saw_no_outage() -> None:
    assert outages(["1.00 1.01 alpha 7", "1.05 1.06 alpha 7"]) == []
