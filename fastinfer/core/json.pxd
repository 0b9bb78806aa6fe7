cdef struct Key:
    const char* data                # text, escapes resolved: in the body, or in Json.scratch
    size_t size
    size_t offset                   # of its opening quote

cdef struct Json:
    const char* begin
    const char* end
    Key* keys                       # members of the objects that are open, innermost last
    size_t n_keys
    size_t key_capacity
    char* scratch                   # text of keys that were written with escapes
    size_t scratch_used
    size_t scratch_capacity
