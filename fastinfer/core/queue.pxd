from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.utility cimport pair

cdef enum:
    LOWEST_RANK = 7                     # of 8 levels; the first goes first
cdef extern from *:
    """
    #define FASTINFER_NEVER INT64_MAX
    """
    const int64_t NEVER "FASTINFER_NEVER"

# Who goes when, of one priority: those within their client's share, then the excess; then, likewise, those without a
# deadline.
cdef enum Turn:
    FAIR, EXCESS, ENDLESS, ENDLESS_EXCESS

# A slot that waits.
cdef struct Waiting:
    int64_t deadline                    # monotonic, or NEVER
    uint64_t order                      # of arrival
    int64_t key                         # whose it is; 0: nobody's in particular
    Py_ssize_t rows
    size_t nbytes
    void* slot                          # which is kept alive
    int rank
    int turn

# A client of whom something waits.
cdef struct Holder:
    int64_t key
    Py_ssize_t slots                    # that wait; 0: nobody stands here
    Py_ssize_t rows
    size_t nbytes
    int64_t deadline                    # and rank: of the one that goes last, or went
    int rank
    Py_ssize_t excess                   # slots that are that
    uint64_t round                      # in which the next one counts
    Py_ssize_t served                   # rows within its share that have run
    uint64_t look                       # at the queue, for the while of which the next two count
    Py_ssize_t counted                  # rows, or bytes
    size_t tail                         # behind its last one that may give way; 0: there is none

cdef struct Queue:
    Waiting* data
    size_t begin, end                   # of those who wait, first to go first
    size_t capacity
    uint64_t orders                     # given away
    Waiting* spare                      # as large as data, where it was needed
    size_t spare_capacity
    Py_ssize_t level                    # rows of one client that go before others' excess
    size_t excess                       # slots that are that
    Py_ssize_t excess_rows
    uint64_t round                      # of turns, in which each client has its share
    Py_ssize_t run_rows                 # in this round
    bint in_rounds                      # a round takes more than one run
    bint unsettled                      # who is that may have changed since turns were taken
    Holder* holders                     # by a hash of their keys
    size_t holder_slots                 # a power of two, or 0
    size_t holder_count
    uint64_t looks
    uint32_t* held                      # how many clients have so many rows
    uint64_t* occupied                  # a bit for each such number that is not 0
    Py_ssize_t held_size                # of both, in bits
    Py_ssize_t held_limit               # as many or more are counted as so many
    Py_ssize_t held_top                 # none has more
    size_t most_bytes                   # that one client has, where ...
    bint bytes_known

# Of a client that has so much: the entry that would give way next.
ctypedef pair[Py_ssize_t, size_t] Claim
