"""What the laboratory's hub lets through: faults on the cables -> one nftables ruleset.

Pure. The hub loads the whole text at once, so that no frame passes between two half-made rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cut:
    """Frames on `network` from node `source` to node `target` get lost; None stands for every node."""

    network: str
    source: str | None = None
    target: str | None = None


@dataclass
class CableFaults:
    cuts: set[Cut] = field(default_factory=set)
    loss_percent: dict[str, int] = field(default_factory=dict)
    """Network name -> share of frames lost, 0 to 100, each frame by chance."""
    silent: set[str] = field(default_factory=set)
    """Nodes that neither hear nor speak: a paused machine does not answer ARP either."""


Ports = dict[tuple[str, str], tuple[str, ...]]
"""(network, node) -> the names that this node's cable has on the hub's bridges."""


def ruleset(faults: CableFaults, ports: Ports) -> str:
    """The nftables text that replaces the hub's table."""
    drops = [
        *(rule for cut in sorted(faults.cuts, key=repr) for rule in _cut(cut, ports)),
        *(rule for name, percent in sorted(faults.loss_percent.items()) for rule in _loss(name, percent, ports)),
        *(rule for node in sorted(faults.silent) for rule in _silence(node, ports)),
    ]
    chains = "".join(
        f"  chain {hook} {{\n    type filter hook {hook} priority 0; policy accept;\n"
        + "".join(f"    {text} drop\n" for chain, text in drops if chain == hook)
        + "  }\n"
        for hook in ("forward", "input", "output")
    )
    return f"table bridge lab\ndelete table bridge lab\ntable bridge lab {{\n{chains}}}\n"


def _set(names: Iterable[str]) -> str:
    return "{ " + ", ".join(f'"{name}"' for name in sorted(names)) + " }"


def _names(ports: Ports, network: str | None, node: str | None) -> list[str]:
    return [name for (on, of), names in ports.items() if network in (None, on) and node in (None, of) for name in names]


def _cut(cut: Cut, ports: Ports) -> list[tuple[str, str]]:
    sources, targets = _names(ports, cut.network, cut.source), _names(ports, cut.network, cut.target)
    if not sources or not targets:
        return []
    rules = [("forward", f"iifname {_set(sources)} oifname {_set(targets)}")]
    if cut.target is None:
        rules.append(("input", f"iifname {_set(sources)}"))
    if cut.source is None:
        rules.append(("output", f"oifname {_set(targets)}"))
    return rules


def _loss(network: str, percent: int, ports: Ports) -> list[tuple[str, str]]:
    # only the end at the network: a delayed frame crosses two bridges and must not be drawn twice
    names = [names[-1] for (on, _), names in ports.items() if on == network]
    if not names or percent <= 0:
        return []
    chance = f"numgen random mod 100 < {percent}"
    return [
        ("forward", f"iifname {_set(names)} {chance}"),
        ("input", f"iifname {_set(names)} {chance}"),
        ("output", f"oifname {_set(names)} {chance}"),
    ]


def _silence(node: str, ports: Ports) -> list[tuple[str, str]]:
    names = _names(ports, None, node)
    if not names:
        return []
    return [
        ("forward", f"iifname {_set(names)}"),
        ("forward", f"oifname {_set(names)}"),
        ("input", f"iifname {_set(names)}"),
        ("output", f"oifname {_set(names)}"),
    ]
