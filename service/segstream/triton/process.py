"""Another process of this machine: whether it is the one that is meant, and when it ends."""

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Self


def start_ticks(pid: int) -> int:
    """When a process was started, in clock ticks since boot. Raises OSError. Linux only."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[19])


class OtherProcess:
    """A handle on a process that stays on it, whatever becomes of its number."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def find(cls, pid: int, started: int) -> Self | None:
        """The process with this number and start, None where it is not to be seen from here."""
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return None
        with suppress(OSError):
            if start_ticks(pid) == started:
                return cls(descriptor)
        os.close(descriptor)
        return None

    def fileno(self) -> int:
        """Becomes readable when the process has ended."""
        return self._descriptor

    def kill(self) -> bool:
        """End it at once; False where that is not allowed."""
        try:
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
        except ProcessLookupError:
            return True
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Let go of the handle."""
        os.close(self._descriptor)
