from libc.stdint cimport int64_t

cdef class Engine:
    cdef Outputs run_rows(self, Signature signature, Rows rows, Batch batch)

cdef class Forest(Engine):
    cdef Ensemble* ensemble
    cdef readonly list inputs, outputs
    cdef int64_t width
    cdef bint single_values, single_sums    # float32
    cdef bint single_answers
    cdef bytes readers, tables              # of Reader, and of the values that are categories
    cdef bytes start                        # what the sums of a row begin with
    cdef const Reader* reader_data
    cdef const double* table_data
    cdef const char* start_data
    cdef const char* label_data
    cdef Py_ssize_t block                   # rows that go through the trees together
    cdef double sentinel, divisor, slope
    cdef int link, rule
    cdef int64_t classes                    # 0: it is no classifier
    cdef str label_type
    cdef size_t label_size
    cdef bytes labels, label_texts          # elements of the output, and what their Spans point into
    cdef int plant(self, dict arrays, bint strict) except -1
    cdef int read_ways(self, ways, features, starts, tables) except -1
    cdef int name_classes(self, labels) except -1
    cdef Outputs answer(self, Signature signature, const void* rows, int64_t count)
    cdef bint fill(self, const char* rows, int64_t count, char* answers, char* labels) noexcept nogil
