"""The one door to packages outside the standard library (psutil), for start and stop; a monitor never opens it."""

from __future__ import annotations

import sys

from agents.ocf.exit_code import ERR_INSTALLED, AgentError
from agents.ocf.state import read_small

LIBRARY = __file__.rpartition("/agents/")[0]
SITE_FILE = f"{LIBRARY}/site-packages"


def enable() -> None:
    """Make the packages of the installing environment importable; call it right before `import psutil`.

    Raises AgentError (5) when the installation recorded no environment.
    """
    directories = read_small(SITE_FILE).split("\n")
    found = [directory for directory in directories if directory]
    if not found:
        raise AgentError(ERR_INSTALLED, f"{SITE_FILE} is missing or empty; run mirrorha-install-agents on this node")
    sys.path.extend(directory for directory in found if directory not in sys.path)
