# The kernels over sparse rows by the names that instructions call them.
from fastinfer.errors import ConfigurationError


cdef KernelEntry vector_entry(str name) except *:
    """The kernels that read or write sparse rows. Those that read several registers have them in their table."""
    if name in ("count_text", "hash_text"):
        return KernelEntry(vectorize, TEXT, VECTOR)
    if name == "hash_words":
        return KernelEntry(hash_words, NOWHERE, VECTOR)
    if name == "hash_fields":
        return KernelEntry(hash_fields, NOWHERE, VECTOR)
    if name == "join_vectors":
        return KernelEntry(join_vectors, NOWHERE, VECTOR)
    if name == "weigh_vector":
        return KernelEntry(weigh_vector, VECTOR, VECTOR)
    if name == "normalize_vector":
        return KernelEntry(normalize_vector, VECTOR, VECTOR)
    if name == "scale_vector":
        return KernelEntry(scale_vector, VECTOR, VECTOR)
    if name == "clip_vector":
        return KernelEntry(clip_vector, VECTOR, VECTOR)
    if name == "pick_vector":
        return KernelEntry(pick_vector, VECTOR, VECTOR)
    if name == "dot_vector":
        return KernelEntry(dot_vector, VECTOR, NUMBER)
    if name == "vector_column":
        return KernelEntry(vector_column, VECTOR, NUMBER)
    if name == "check_vector":
        return KernelEntry(check_vector, VECTOR, NOWHERE)
    if name == "store_vector_float32":
        return KernelEntry(store_vector_float32, VECTOR, OUTPUT_FLOAT32)
    if name == "store_vector_float64":
        return KernelEntry(store_vector_float64, VECTOR, OUTPUT_FLOAT64)
    raise ConfigurationError(f"the compiled core has no operation {name!r}")


cdef Kernel entering(str name) noexcept:
    """The twin of a store for a sparse output; NULL for every other kernel."""
    if name in ("store_float32", "store_float64"):
        return enter_number
    if name in ("scatter_float32", "scatter_float64"):
        return enter_hot
    if name in ("store_vector_float32", "store_vector_float64"):
        return enter_vector
    return NULL
