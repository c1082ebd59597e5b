"""What an agent class declares -> meta-data XML; the sole place that knows the format.

Rules that readers impose (crmsh, pcs, ocf-tester, the controller):
- no `encoding=` in the XML declaration: crmsh hands a decoded string to lxml, which then refuses it;
- a DOCTYPE, since ocf-tester validates; an internal subset for the OCF 1.1 attributes the shipped DTD does not know;
- a parameter holds longdesc, shortdesc, content in this order; its shortdesc differs from its name and longdesc;
- child element <version> says 1.1: only then does the controller use `reload-agent`.
"""

from __future__ import annotations

from agents.ocf.action import ActionRow
from agents.ocf.parameter import Parameter

HEAD = """<?xml version="1.0"?>
<!DOCTYPE resource-agent SYSTEM "ra-api-1.dtd" [
  <!ATTLIST parameter unique-group CDATA #IMPLIED reloadable (0|1) #IMPLIED private (0|1) #IMPLIED>
  <!ATTLIST action name CDATA #REQUIRED>
  <!ATTLIST content type CDATA #REQUIRED>
]>
"""
AGENT_VERSION = "1.0"
API_VERSION = "1.1"
METADATA_TIMEOUT_S = 10
# the order managers and people expect; whatever an agent adds comes after
ACTION_ORDER = ("start", "stop", "monitor", "promote", "demote", "notify", "reload-agent", "reload", "validate-all")


def render(name: str, docstring: str, parameters: list[Parameter], actions: dict[str, tuple[ActionRow, ...]]) -> str:
    """The complete document, UTF-8 text with a final newline."""
    short, long = describe(docstring)
    lines = [
        f'<resource-agent name="{escape(name)}" version="{AGENT_VERSION}">',
        f"  <version>{API_VERSION}</version>",
        f'  <longdesc lang="en">{escape(long)}</longdesc>',
        f'  <shortdesc lang="en">{escape(short)}</shortdesc>',
        "  <parameters>",
        *(line for parameter in parameters for line in parameter_lines(parameter)),
        "  </parameters>",
        "  <actions>",
        *action_lines(actions),
        "  </actions>",
        "</resource-agent>",
    ]
    return HEAD + "\n".join(lines) + "\n"


def describe(docstring: str) -> tuple[str, str]:
    """Short and long description: the first line, and all of it with the indentation removed."""
    lines = [line.strip() for line in docstring.strip().splitlines()]
    short = lines[0].rstrip(".")
    return short, "\n".join(lines)


def parameter_lines(parameter: Parameter) -> list[str]:
    flags = {
        "required": parameter.required,
        "unique": parameter.unique,
        "reloadable": parameter.reloadable,
        "private": parameter.private,
    }
    attributes = "".join(f' {name}="1"' for name, is_set in flags.items() if is_set)
    if parameter.unique_group:
        attributes += f' unique-group="{escape(parameter.unique_group)}"'
    sentence = parameter.text if parameter.text.endswith(".") else parameter.text + "."
    long = " ".join(part for part in (parameter.more or sentence, parameter.constraint()) if part)
    default = "" if not parameter.default else f' default="{escape(parameter.default)}"'
    return [
        f'    <parameter name="{escape(parameter.name)}"{attributes}>',
        f'      <longdesc lang="en">{escape(long)}</longdesc>',
        f'      <shortdesc lang="en">{escape(parameter.text.rstrip("."))}</shortdesc>',
        f'      <content type="{parameter.content_type}"{default}/>',
        "    </parameter>",
    ]


def action_lines(actions: dict[str, tuple[ActionRow, ...]]) -> list[str]:
    known = [name for name in ACTION_ORDER if name in actions]
    names = known + [name for name in actions if name not in known]
    lines = [action_line(name, row) for name in names for row in actions[name]]
    return [*lines, action_line("meta-data", ActionRow(METADATA_TIMEOUT_S))]


def action_line(name: str, row: ActionRow) -> str:
    attributes = f'name="{escape(name)}" timeout="{row.timeout_s}s"'
    if row.interval_s is not None:
        attributes += f' interval="{row.interval_s}s"'
    if row.depth is not None:
        attributes += f' depth="{row.depth}"'
    if row.role:
        attributes += f' role="{escape(row.role)}"'
    return f"    <action {attributes}/>"


def escape(text: str) -> str:
    """Safe in element content and in a double-quoted attribute; control characters, which XML 1.0 forbids, vanish."""
    clean = "".join(c for c in text if c >= " " or c in "\n\t")
    return clean.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
