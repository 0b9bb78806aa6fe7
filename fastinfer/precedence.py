"""Which thread gets the core: the event loop's goes before those that compute beside it.

A loop that has run for a while owes its core to whoever computes there, and waits for that until the kernel's next
tick, up to 4 ms, with all requests. It owes the less the nicer the other is.
"""

import contextlib
import os
import threading

BEHIND = 10  # nice values after the loop's: a tenth of a core that both want
ORDINARY = (os.SCHED_OTHER, os.SCHED_BATCH)  # who chose another policy for the server knows better


def behind() -> None:
    """Let this thread, which computes for long without the interpreter's lock, stand behind the loop's.

    For good: to come back takes a privilege. The threads that it starts inherit it. A tenth of the core is left to it
    where the loop never sleeps. Not for a thread that runs Python: while it holds that lock the loop waits for it, and
    for whatever goes before it.
    """
    if os.sched_getscheduler(0) not in ORDINARY:
        return
    with contextlib.suppress(OSError):
        nice = min(os.getpriority(os.PRIO_PROCESS, os.getpid()) + BEHIND, 19)  # of the main thread
        thread = threading.get_native_id()
        if os.getpriority(os.PRIO_PROCESS, thread) < nice:
            os.setpriority(os.PRIO_PROCESS, thread, nice)


def waited_ns() -> int:
    """How long this thread has been ready to run and had no core, since it began; 0 where the system does not tell."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as stream:
            return int(stream.read().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
