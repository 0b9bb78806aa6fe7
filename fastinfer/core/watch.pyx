# Runs on the event loop's own thread that do not end: nothing on that thread can tell, so that another one looks.
#
# Such a run is made there since those before it took less than a millisecond. One that takes a quarter of a second is
# told to end and begins anew on a worker thread, where it has its time, and the loop goes on.
from libc.stdint cimport int64_t
from libcpp.atomic cimport memory_order_relaxed

import os
import threading

cdef extern from "<time.h>" nogil:
    int nanosleep(const timespec* time, timespec* rest)

cdef int64_t LONGEST_HERE_NS = 250_000_000  # of a run on the loop
cdef int64_t LOOKS_NS = 50_000_000          # between two looks at it

cdef atomic[int64_t] watch_due              # when the run that is watched has taken too long; 0: there is none
cdef Batch watched = None                   # touched with the interpreter's lock only
cdef Batcher watched_by = None
cdef int64_t watching = 0                   # the process in which somebody looks


cdef int watch_from_here() except -1:
    """Have somebody look, in this process."""
    global watching
    if watching != os.getpid():
        watching = os.getpid()
        watch_due.store(0, memory_order_relaxed)
        threading.Thread(target=watch_runs, name="fastinfer-watch", daemon=True).start()
    return 0


def watch_runs():
    """Look after the runs on the loop, for ever; the interpreter's lock is taken for what takes too long only."""
    cdef timespec pause
    cdef int64_t due
    pause.tv_sec = 0
    pause.tv_nsec = LOOKS_NS
    while True:
        with nogil:
            while True:
                nanosleep(&pause, NULL)
                due = watch_due.load(memory_order_relaxed)
                if due and monotonic_ns() > due:
                    break
        if watched is not None and watch_due.load(memory_order_relaxed) == due:
            interrupt(watched_by, watched)


cdef int interrupt(Batcher batcher, Batch batch) except -1:
    watch_due.store(0, memory_order_relaxed)
    if batch.call is not None or batcher.stop is not None:
        logger.warning("a run of %d rows has held the event loop for %g s: it is to end, and goes on on a thread",
                       batch.rows.rows, (monotonic_ns() - batch.started_ns) / 1e9)
        batch.interrupted = True
        if batch.call is not None:
            batch.call.stop()
        else:
            batcher.stop(batcher.thread)
    return 0


cdef int run_here(Batcher batcher, Batch batch) except -1:
    """Run a batch on the loop, and answer its requests; on a thread after all where that takes too long."""
    global watched, watched_by
    if watched is not None:  # another loop's
        batcher.run_batch(batch)
        return batcher.settle(batch)
    watched = batch
    watched_by = batcher
    watch_due.store(batch.started_ns + max(LONGEST_HERE_NS, 4 * batcher.cost.budget_ns), memory_order_relaxed)
    batcher.run_batch(batch)
    watch_due.store(0, memory_order_relaxed)
    watched = watched_by = None
    if batch.interrupted:
        batch.interrupted = False
        if batch.outputs is None and batch.error is None:
            batcher.learn(batch.rows.rows, batch.finished_ns - batch.started_ns)
            return batcher.start_thread(batch, batcher.run_whole)
    return batcher.settle(batch)
