"""Keep a process alive and awake that stands in the way of dirty pages: it must never wait for memory it has to free.

Used by mirrord and by the attach helper; what a child inherits is said at each function.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_IO_FLUSHER, PR_GET_IO_FLUSHER = 1, 57, 58
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
M_ARENA_MAX = -8
OOM_SCORE_NEVER = -1000

_libc = ctypes.CDLL(None, use_errno=True)


def harden() -> list[str]:
    """Lock memory, ask to be an I/O flusher, and be spared by the OOM killer.

    Returns one sentence for each that was refused, for the log; the process works on without it.
    Children inherit the I/O flusher state and the OOM score (prctl(2), proc(5)), but no memory lock (mlockall(2)).
    Only the calling thread and those it starts later become I/O flushers: call it first.
    """
    warnings = []
    _libc.mallopt(M_ARENA_MAX, 1)  # else each thread keeps a heap of what passed through it once: 2 MiB a reader
    if _libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT):
        warnings.append(f"memory is not locked ({_last_error()}): a page of this process may have to be swapped in "
                        "through the device it serves; grant CAP_IPC_LOCK")  # fmt: skip
    if _libc.prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0):
        warnings.append(f"PR_SET_IO_FLUSHER refused ({_last_error()}): an allocation may wait for pages that only this "
                        "process can write out; grant CAP_SYS_RESOURCE")  # fmt: skip
    try:
        Path("/proc/self/oom_score_adj").write_text(f"{OOM_SCORE_NEVER}\n", encoding="ascii")
    except OSError as error:
        warnings.append(f"OOM score not lowered ({error.strerror}): this process may be killed for another's memory; "
                        "grant CAP_SYS_RESOURCE")  # fmt: skip
    return warnings


def io_flusher_granted() -> bool:
    """Is the calling thread an I/O flusher? Without CAP_SYS_RESOURCE the kernel does not tell, and nobody can be."""
    return bool(_libc.prctl(PR_GET_IO_FLUSHER, 0, 0, 0, 0) == 1)


def die_with_parent(signal_number: int, parent: int) -> None:
    """Be sent `signal_number` when the thread that forked us ends; at once if process `parent` is no longer ours."""
    _libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
    if os.getppid() != parent:  # it died before the request
        os.kill(os.getpid(), signal_number)


def _last_error() -> str:
    return os.strerror(ctypes.get_errno())
