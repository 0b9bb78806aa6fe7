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
    Py_ssize_t start                    # in its client's virtual time; 0: it has none
    int rank
    int turn

# A client of whom something waits, or of whom it is known what has run.
cdef struct Holder:
    int64_t key                         # 0: nobody stands here
    Py_ssize_t slots                    # that wait
    Py_ssize_t rows
    Py_ssize_t start                    # the virtual time up to which it has been served
    size_t nbytes
    int64_t deadline                    # and rank: of the one that goes last, or went
    int rank
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
    Py_ssize_t level                    # the virtual time whose rows go before the excess; 0: no one has any
    size_t excess                       # slots that are that
    Py_ssize_t excess_rows
    bint unsettled                      # who is that may have changed since turns were taken
    Py_ssize_t virtual                  # time, in rows: as many as a client could have had that always asks
    Py_ssize_t virtual_next             # when the run has begun that turns were taken for
    Py_ssize_t stood                    # rows that have run since it went on
    Py_ssize_t credit                   # rows by which a client may lag behind it
    bint short                          # somebody was refused since the last run began
    Holder* holders                     # by a hash of their keys
    size_t holder_slots                 # a power of two, or 0
    size_t holder_count                 # of whom something waits
    size_t known_count                  # and all of them
    uint64_t looks
    Py_ssize_t origin                   # the virtual time that these begin with:
    uint32_t* started                   # how many clients' first rows stand there
    uint32_t* ended                     # and behind how many clients' last ones
    uint64_t* occupied                  # a bit for each where one of them is not 0
    Py_ssize_t held_size                # of all three
    Py_ssize_t held_limit               # what is further is taken for as far
    Py_ssize_t held_top                 # nothing is
    size_t most_bytes                   # that one client has, where ...
    bint bytes_known

# Of a client that has so much: the entry that would give way next.
ctypedef pair[Py_ssize_t, size_t] Claim
