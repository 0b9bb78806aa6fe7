from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

cdef extern from *:
    """
    namespace fastinfer { struct Reader; struct Natural; struct Ensemble; }
    """
    cppclass Reader "fastinfer::Reader":                # makes one column of keys
        int32_t feature
        uint32_t how                                    # bits of SPLITS
        int64_t table, table_size

    cppclass Natural "fastinfer::Natural":              # a forest as it is given
        int64_t trees, columns, outputs, leaf_width, leaves, sets
        const int64_t* starts
        const int32_t* left
        const int32_t* right
        const int32_t* column
        const int32_t* target
        const uint8_t* categorical
        const void* thresholds
        const void* values
        const Reader* readers
        const int64_t* set_starts
        const uint32_t* set_words
        bint strict

    cppclass Ensemble "fastinfer::Ensemble":            # and as it is walked
        int64_t columns, outputs
        size_t key_size, sum_size
        void add(const void*, size_t, int64_t, const Reader*, const double*, double, void*, void*) nogil
