"""Which thread gets the core: the event loop's goes before those that run, load and convert beside it.

A loop that wakes must have its core at once, or each request waits for what happens to compute there: until the
kernel's next tick, up to 4 ms. Nothing here needs a privilege, and what a kernel does not know changes nothing there.
"""

import contextlib
import ctypes
import os
import platform
import struct
import threading

BEHIND = 10  # nice values after the loop's: a tenth of a core that both want
SLICE_NS = 500_000  # of the loop; shorter than the system's own of 0.7 ms and more, so that a wake-up interrupts those
ORDINARY = (os.SCHED_OTHER, os.SCHED_BATCH)  # who chose another policy for the server knows better
SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
ATTRIBUTES = struct.Struct("=IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period


def lead() -> None:
    """Let this thread, which runs an event loop, go before others whenever it wakes.

    By a shorter slice of time than theirs, which the scheduler takes as more urgent and not as more (Linux 6.12).
    """
    if os.sched_getscheduler(0) in ORDINARY:
        ask_for_slice(SLICE_NS)


def beside() -> None:
    """Let this thread, which runs Python, be an ordinary one: one that the loop has started has the loop's slice.

    No more than that. It holds the interpreter's lock, which the loop waits for: if anything else had the core
    meanwhile because it is more important than this thread, the loop would wait for that too.
    """
    if os.sched_getscheduler(0) in ORDINARY:
        ask_for_slice(0)


def behind() -> None:
    """Let this thread, which computes for long without the interpreter's lock, stand behind the loop's.

    For good: to come back takes a privilege. The threads that it starts inherit it. A tenth of the core is left to it
    where the loop never sleeps.
    """
    if os.sched_getscheduler(0) not in ORDINARY:
        return
    with contextlib.suppress(OSError):
        nice = min(os.getpriority(os.PRIO_PROCESS, os.getpid()) + BEHIND, 19)  # of the main thread
        thread = threading.get_native_id()
        if os.getpriority(os.PRIO_PROCESS, thread) < nice:
            os.setpriority(os.PRIO_PROCESS, thread, nice)
    ask_for_slice(0)


def ask_for_slice(nanoseconds: int) -> None:
    """Of time; 0 for the system's own. Source: sched(7) and sched_setattr(2); before Linux 6.12 it is ignored."""
    number = SCHED_SETATTR.get(platform.machine())
    if number is None:
        return
    nice = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    asked = ATTRIBUTES.pack(ATTRIBUTES.size, os.sched_getscheduler(0), 0, nice, 0, nanoseconds, 0, 0)
    ctypes.CDLL(None).syscall(number, 0, asked, 0)


def waited_ns() -> int:
    """How long this thread has been ready to run and had no core, since it began; 0 where the system does not tell."""
    try:
        with open("/proc/thread-self/schedstat", "rb") as stream:
            return int(stream.read().split()[1])
    except (OSError, IndexError, ValueError):
        return 0
