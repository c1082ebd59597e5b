from __future__ import annotations

from vagrant.namespaces.rules import CableFaults, Cut, Ports, ruleset

PORTS: Ports = {
    ("data", "alpha"): ("alpha.eth3",),
    ("data", "beta"): ("beta.eth3",),
    ("public", "alpha"): ("alpha.eth1",),
}


def drops(faults: CableFaults, ports: Ports = PORTS) -> list[str]:
    return [line.strip() for line in ruleset(faults, ports).splitlines() if line.strip().endswith("drop")]


def test_a_sound_laboratory_drops_nothing() -> None:
    assert drops(CableFaults()) == []


def test_a_ruleset_replaces_the_one_before_as_a_whole() -> None:
    assert ruleset(CableFaults(), {}).startswith("table bridge lab\ndelete table bridge lab\ntable bridge lab {")


def test_a_one_way_cut_leaves_the_other_way_alone() -> None:
    assert drops(CableFaults(cuts={Cut("data", "alpha", "beta")})) == [
        'iifname { "alpha.eth3" } oifname { "beta.eth3" } drop'
    ]


def test_a_whole_cut_also_reaches_what_the_hub_itself_answers() -> None:
    rules = drops(CableFaults(cuts={Cut("public")}))
    assert 'iifname { "alpha.eth1" } drop' in rules
    assert 'oifname { "alpha.eth1" } drop' in rules
    assert not any("eth3" in rule for rule in rules)


def test_a_cut_of_a_node_that_is_off_makes_no_rule() -> None:
    assert drops(CableFaults(cuts={Cut("public", "beta", None)})) == []


def test_a_relayed_cable_is_cut_by_both_of_its_names() -> None:
    relayed = {**PORTS, ("data", "beta"): ("beta.eth3", "beta.eth3.b")}
    (rule,) = drops(CableFaults(cuts={Cut("data", "alpha", "beta")}), relayed)
    assert '"beta.eth3", "beta.eth3.b"' in rule


def test_loss_is_by_chance_and_on_one_network() -> None:
    rules = drops(CableFaults(loss_percent={"data": 15}))
    assert len(rules) == 3
    assert all("numgen random mod 100 < 15" in rule and "eth1" not in rule for rule in rules)


def test_a_silent_node_neither_hears_nor_speaks_on_any_cable() -> None:
    rules = drops(CableFaults(silent={"alpha"}))
    assert any(rule.startswith("iifname") and "alpha.eth1" in rule and "alpha.eth3" in rule for rule in rules)
    assert any(rule.startswith("oifname") for rule in rules)


def test_a_delayed_frame_is_drawn_for_loss_once_like_any_other() -> None:
    """It crosses two bridges of the hub on its way, by the cable's end and by the relay's."""
    delayed: Ports = {("data", "alpha"): ("alpha.eth3", "alpha.eth3.b"), ("data", "beta"): ("beta.eth3", "beta.eth3.b")}
    for rule in drops(CableFaults(loss_percent={"data": 30}), delayed):
        assert '"alpha.eth3.b", "beta.eth3.b"' in rule
        assert '"alpha.eth3"' not in rule
