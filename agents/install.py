"""mirrorha-install-agents: put the OCF agents where a cluster manager looks for them.

    <root>/usr/lib/ocf/resource.d/mirrorha/<Type>          the executable, ten lines that import the library
    <root>/usr/lib/ocf/lib/mirrorha/agents/                the library, byte-compiled for /usr/bin/python3
    <root>/usr/lib/ocf/lib/mirrorha/metadata/<Type>.xml    what `meta-data` prints, rendered once here
    <root>/usr/lib/ocf/lib/mirrorha/site-packages          where start and stop would find Python packages
    <root>/usr/share/man/man[78]/                          a manual page for each agent, and one for this command

Everything is root's and world-readable: managers and testers run `meta-data` as an unprivileged user. Running it again
changes only what differs and removes library files that no longer exist.
"""

from __future__ import annotations

import argparse
import importlib
import os
import pkgutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NoReturn

import agents
from agents import manual
from agents.ocf.agent import Agent

COMMAND = "mirrorha-install-agents"
PROVIDER = Agent.provider
INTERPRETER = "/usr/bin/python3"
EXECUTABLES = f"usr/lib/ocf/resource.d/{PROVIDER}"
LIBRARY = f"usr/lib/ocf/lib/{PROVIDER}"
MANUAL = "usr/share/man"
NOT_INSTALLED = frozenset({"install", "manual"})
"""Modules that only the installer needs."""
# exit codes of all our commands, after sysexits and Pacemaker
EXIT_USAGE = 64
EXIT_UNAVAILABLE = 69
EXIT_NO_PERMISSION = 77

STUB = """#!{interpreter} -IS
# Resource agent ocf:{provider}:{type}. Installed by mirrorha-install-agents; do not edit.
# The code is in /{library}, byte-compiled: an executable itself is never cached.
import sys

sys.path.insert(0, "/{library}")

from {module} import {type}

{type}.main()
"""


def find_agents() -> list[type[Agent]]:
    """Every Agent subclass in a module directly below `agents`, by name: a new agent is one new file."""
    found: dict[str, type[Agent]] = {}
    for info in pkgutil.iter_modules(agents.__path__):
        if info.name in NOT_INSTALLED:
            continue
        module = importlib.import_module(f"agents.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Agent) and value.__module__ == module.__name__:
                found[value.__name__] = value
    return [found[name] for name in sorted(found)]


def wanted_files() -> dict[str, tuple[bytes, int]]:
    """Path below the root -> content and mode: the whole installation, as data."""
    source = Path(agents.__file__).parent
    wanted: dict[str, tuple[bytes, int]] = {}
    for path in sorted(source.rglob("*.py")):
        name = path.relative_to(source)
        if name.stem not in NOT_INSTALLED:
            wanted[f"{LIBRARY}/agents/{name.as_posix()}"] = (path.read_bytes(), 0o644)
    for agent in find_agents():
        stub = STUB.format(
            interpreter=INTERPRETER, provider=PROVIDER, type=agent.__name__, module=agent.__module__, library=LIBRARY
        )
        wanted[f"{EXECUTABLES}/{agent.__name__}"] = (stub.encode(), 0o755)
        wanted[f"{LIBRARY}/metadata/{agent.__name__}.xml"] = (agent.render_metadata().encode(), 0o644)
        wanted[f"{MANUAL}/man7/ocf_{PROVIDER}_{agent.__name__}.7"] = (manual.render(agent).encode(), 0o644)
    own_page = f"{COMMAND}.8"
    wanted[f"{MANUAL}/man8/{own_page}"] = ((source / own_page).read_bytes(), 0o644)
    paths = sysconfig.get_paths()
    directories = dict.fromkeys((paths["purelib"], paths["platlib"]))
    wanted[f"{LIBRARY}/site-packages"] = ("".join(f"{directory}\n" for directory in directories).encode(), 0o644)
    return wanted


def differs(path: Path, content: bytes, mode: int) -> bool:
    if path.is_symlink() or not path.is_file():
        return True
    state = path.stat()
    return state.st_mode & 0o7777 != mode or (state.st_uid, state.st_gid) != owner() or path.read_bytes() != content


def owner() -> tuple[int, int]:
    """root:root, or ourselves when an unprivileged user prepares a tree."""
    return (0, 0) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


def put(root: Path, name: str, content: bytes, mode: int) -> None:
    """Replace one file by rename, so that an agent that starts just now sees the old or the new one."""
    path = root / name
    make_directories(root, path.parent)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(content)
    os.chown(temporary, *owner())
    temporary.chmod(mode)
    temporary.replace(path)


def make_directories(root: Path, directory: Path) -> None:
    """The directories below root; those of our own provider always get mode 755, whatever the umask."""
    for part in [*reversed(directory.relative_to(root).parents), directory.relative_to(root)]:
        path = root / part
        created = not path.is_dir()
        path.mkdir(exist_ok=True)
        if created or part.as_posix().startswith((EXECUTABLES, LIBRARY)):
            path.chmod(0o755)


def stale(root: Path, wanted: dict[str, tuple[bytes, int]]) -> list[Path]:
    """Library sources and byte-code, meta-data and executables of an earlier version."""
    kept = {root / name for name in wanted}
    found = []
    for directory in (LIBRARY, EXECUTABLES):
        for path in sorted((root / directory).rglob("*")):
            in_cache = path.parent.name == "__pycache__"
            source = path.parent.parent / f"{path.name.split('.')[0]}.py" if in_cache else path
            if path.is_file() and source not in kept:
                found.append(path)
    return found


def compile_library(root: Path) -> None:
    """Byte-compile for the interpreter that will run the agents, which need not be the one that installs them."""
    directory = root / LIBRARY / "agents"
    strip = ["-s", str(root), "-p", "/"] if root != Path("/") else []
    subprocess.run([INTERPRETER, "-IS", "-m", "compileall", "-q", *strip, str(directory)], check=True, umask=0o022)


def install(root: Path, *, dry_run: bool) -> list[str]:
    """Bring `root` up to date. Returns one line for each thing changed (or that would be)."""
    wanted = wanted_files()
    lines = []
    for name, (content, mode) in wanted.items():
        path = root / name
        if differs(path, content, mode):
            lines.append(f"{'update' if path.exists() else 'create'} {path}")
            if not dry_run:
                put(root, name, content, mode)
    for path in stale(root, wanted):
        lines.append(f"remove {path}")
        if not dry_run:
            path.unlink()
    if not dry_run:
        compile_library(root)
    return lines


class Parser(argparse.ArgumentParser):
    """argparse would end with 2, which means something else to whoever calls a cluster command."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}; see {self.prog} -h\n")


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(
        prog=COMMAND,
        description=f"Install the OCF resource agents of provider {PROVIDER}.",
        epilog="examples:  mirrorha-install-agents            onto this machine\n"
        "           mirrorha-install-agents --root /tmp/x   below /tmp/x, e.g. as an overlay layer for /\n"
        "           mirrorha-install-agents --dry-run   say what would change",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, default=Path("/"), help="directory that stands for / (default: /)")
    parser.add_argument("--dry-run", action="store_true", help="change nothing, print what would be done")
    options = parser.parse_args(arguments)
    root = options.root.absolute()
    if not os.access(INTERPRETER, os.X_OK):
        print(f"{INTERPRETER} is missing: the agents start by it; apt-get install python3", file=sys.stderr)
        return EXIT_UNAVAILABLE
    try:
        if not options.dry_run:
            root.mkdir(parents=True, exist_ok=True)
        lines = install(root, dry_run=options.dry_run)
    except PermissionError as error:
        print(f"{error.filename}: no permission; run as root, or give --root a directory of yours", file=sys.stderr)
        return EXIT_NO_PERMISSION
    for line in lines:
        print(f"would {line}" if options.dry_run else line)
    names = ", ".join(f"ocf:{PROVIDER}:{agent.__name__}" for agent in find_agents())
    state = "would be installed" if options.dry_run else "installed"
    print(f"{names} {state} below {root}, {len(lines)} change{'s' * (len(lines) != 1)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
