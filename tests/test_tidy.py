"""The drawing of who may import whom, as a test. Read it as a map of the project.

An arrow points at what is imported. Following arrows never leads back, and nothing is hidden inside functions except
what start-up time asks for.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PACKAGES = ("agents", "replication", "crm_tools", "vagrant")

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    # agents: one file an agent, all on the runtime; the runtime knows no agent
    "agents.ocf": ("agents.ocf",),
    "agents": ("agents",),
    # replication: works without a cluster
    "replication.protocol": ("replication.protocol",),
    "replication.commands": (
        "replication.control",
        "replication.config",
        "replication.errors",
        "replication.create_metadata",
        "replication.commands",
    ),
    "replication": ("replication",),
    # the cluster
    "crm_tools.membership": ("crm_tools.membership",),
    "crm_tools.manager.cib": ("crm_tools.manager.cib",),
    "crm_tools.manager.scheduler": ("crm_tools.manager.scheduler", "crm_tools.manager.cib"),
    "crm_tools.manager": ("crm_tools.manager", "crm_tools.membership.client"),
    "crm_tools.rose": ("crm_tools.rose", "crm_tools.manager.client"),
    "crm_tools.commands": ("crm_tools.commands", "crm_tools.rose", "crm_tools.manager.client", "crm_tools.manager.cib"),
    "crm_tools.console": ("crm_tools.console", "crm_tools.rose", "crm_tools.manager.client"),
    "crm_tools": (),
    # the laboratory runs our programs as programs
    "vagrant": ("vagrant",),
}
"""Package -> what of the project its modules may import. The longest name that fits a module counts."""

WORLD = {
    "asyncio", "ctypes", "fcntl", "multiprocessing", "os", "pathlib", "posix", "random", "select",
    "selectors", "shutil", "signal", "socket", "subprocess", "tempfile", "threading", "time", "psutil", "pyroute2",
    "_socket", "_thread",
}  # fmt: skip

PURE = ("replication.protocol", "crm_tools.membership.protocol", "crm_tools.manager.scheduler", "crm_tools.manager.cib")
PURE_MODULES = (
    "agents.mounts.check",
    "agents.mounts.holders",
    "agents.mounts.schedule",
    "agents.mounts.verdict",
    "vagrant.namespaces.rules",
    "vagrant.namespaces.disk.cache",
    "vagrant.namespaces.disk.nbd",
)

ONE_OWNER = {
    # library -> the only packages that may import it
    "jinja2": ("agents.manual", "vagrant.engines", "crm_tools", "replication"),
    "pyroute2": ("vagrant.namespaces", "crm_tools.membership"),
    "lxml": ("crm_tools.manager", "crm_tools.rose", "tests"),
    "testinfra": ("vagrant.namespaces",),
}


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((PROJECT / package).rglob("*.py")):
            parts = path.relative_to(PROJECT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(path: Path) -> set[str]:
    """Every module that the file imports, at whatever depth; of `from a import b`, both a and a.b.

    What stands under `if TYPE_CHECKING:` is not imported when the program runs, and draws no arrow.
    """
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


MODULES = list(modules())


def test_there_is_something_to_look_at() -> None:
    assert {name.partition(".")[0] for name, _ in MODULES} >= {"agents", "vagrant"}


@pytest.mark.parametrize(("name", "path"), MODULES, ids=[name for name, _ in MODULES])
def test_a_module_imports_only_what_the_drawing_allows(name: str, path: Path) -> None:
    package = max((package for package in MAY_IMPORT if within(name, package)), key=len)
    known = {module for module, _ in MODULES}
    for imported in imports(path) & known:
        if imported in PACKAGES:
            continue  # the empty parent, named by "from agents import x"; agents.x is looked at too
        assert any(within(imported, allowed) for allowed in MAY_IMPORT[package]), f"{name} imports {imported}"


def test_following_imports_never_leads_back() -> None:
    known = {name for name, _ in MODULES}
    graph = {name: {other for other in imports(path) & known if other != name} for name, path in MODULES}
    # a package's __init__ is imported by naming what is inside; that alone is no arrow
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def test_what_decides_touches_nothing() -> None:
    for name, path in MODULES:
        if any(within(name, package) for package in PURE) or name in PURE_MODULES:
            touched = {imported.partition(".")[0] for imported in imports(path)} & WORLD
            assert not touched, f"{name} imports {sorted(touched)}"


def test_each_library_stays_with_its_owner() -> None:
    for name, path in MODULES:
        for imported in {found.partition(".")[0] for found in imports(path)} & set(ONE_OWNER):
            assert any(within(name, owner) for owner in ONE_OWNER[imported]), f"{name} imports {imported}"


def test_no_module_is_called_after_nothing() -> None:
    for name, _ in MODULES:
        assert not {"utils", "util", "common", "helpers", "misc"} & set(name.split(".")), name


def test_only_commands_and_the_agents_exit_print() -> None:
    allowed = ("agents.install", "agents.ocf", "crm_tools.commands", "replication.commands", "vagrant")
    for name, path in MODULES:
        if any(within(name, package) for package in allowed):
            continue
        calls = [n for n in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(n, ast.Call)]
        assert not [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"], name


def test_the_suite_itself_runs_on_the_python_we_promise() -> None:
    assert sys.version_info >= (3, 11)
