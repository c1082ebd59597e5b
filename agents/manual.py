"""What an agent class declares -> its manual page, ocf_mirrorha_<Type>(7). Pure but for reading its template."""

from __future__ import annotations

from pathlib import Path

import jinja2

from agents.ocf.agent import Agent
from agents.ocf.metadata import ACTION_ORDER, describe

TEMPLATES = Path(__file__).parent


def roff(text: str) -> str:
    """Text as roff shows it: backslashes and hyphens kept, no line mistaken for a request."""
    safe = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in safe.splitlines())


def render(agent: type[Agent]) -> str:
    """The page in roff (man(7)), with a final newline."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["roff"] = roff
    short, long = describe(agent.__doc__ or agent.__name__)
    rows = agent.actions()
    names = [name for name in ACTION_ORDER if name in rows] + [name for name in rows if name not in ACTION_ORDER]
    operations = [(name, row) for name in names for row in rows[name]]
    return environment.get_template("manual.7.j2").render(
        provider=agent.provider,
        type=agent.__name__,
        short=short,
        long=long,
        parameters=agent.parameters(),
        operations=operations,
    )
