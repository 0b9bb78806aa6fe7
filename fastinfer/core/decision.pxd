from libc.stdint cimport int32_t

cdef class Policy:
    cdef Signature inner                    # the runtime's
    cdef readonly Signature signature       # outputs = what is answered
    cdef readonly tuple added               # names of the policy's own outputs
    cdef list kept                          # places of the runtime's outputs that are answered
    cdef int source                         # the judged one
    cdef int column                         # of it
    cdef bint decides, scores
    cdef int32_t n_thresholds, n_classes
    cdef double* turns                      # thresholds, or one a class with NaN for none
    cdef Span* labels                       # of `text`
    cdef bytes text
    cdef bint log_odds
    cdef double factor, offset, low, high
    cdef double scale                       # a power of ten; 0: not rounded
    cdef Outputs decide(self, Outputs given)
