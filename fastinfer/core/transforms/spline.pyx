# B-splines, evaluated in scipy's order of operations: scipy/interpolate/src/__fitpack.cc.
from libc.math cimport NAN, copysign, fmod, isnan
from libc.stdint cimport int32_t
from libc.string cimport memcpy

cdef enum:
    MAX_DEGREE = 64

cdef enum SplineMode:
    SPLINE_EDGES, SPLINE_CONTINUE, SPLINE_PERIODIC, SPLINE_ERROR

cdef struct Spline:
    double* knots
    int32_t n_knots
    int32_t degree
    int32_t splines             # basis functions, the periodic ones counted once
    SplineMode mode
    double low                  # the range of SPLINE_EDGES
    double high
    double* low_values          # what each basis function is below it, and above
    double* high_values         # NULL: refused
    double* low_slopes          # NULL: constant
    double* high_slopes
    int32_t reach               # how many basis functions go on at each end


cdef int32_t interval_of(const Spline* spline, double x) noexcept nogil:
    """The interval with t[i] <= x < t[i + 1]; the first or the last where x is outside."""
    cdef int32_t low = spline.degree, high = spline.n_knots - spline.degree - 1, middle
    while high - low > 1:
        middle = (low + high) // 2
        if spline.knots[middle] <= x:
            low = middle
        else:
            high = middle
    return low


cdef void basis_of(const double* knots, double x, int32_t degree, int32_t interval, double* result) noexcept nogil:
    """de Boor's recursion: the degree + 1 basis functions that are not zero there. ``result`` has twice the room."""
    cdef double* before = result + degree + 1
    cdef double right, left, weight
    cdef int32_t j, n
    result[0] = 1.0
    for j in range(1, degree + 1):
        memcpy(before, result, j * sizeof(double))
        result[0] = 0.0
        for n in range(1, j + 1):
            right = knots[interval + n]
            left = knots[interval + n - j]
            if right == left:
                result[n] = 0.0
                continue
            weight = before[n - 1] / (right - left)
            result[n - 1] += weight * (right - x)
            result[n] = weight * (x - left)


cdef inline double remainder_of(double value, double modulus) noexcept nogil:
    """numpy's %, of a modulus above 0."""
    cdef double rest = fmod(value, modulus)
    if rest == 0.0:
        return copysign(0.0, modulus)
    return rest + modulus if rest < 0.0 else rest


cdef void put_basis(const Operation* operation, const Block* block, Py_ssize_t i, double x) noexcept nogil:
    """The basis functions at x, as scipy sums them: coefficients of 1 and 0 times the values of the interval.

    With `flags` only the coefficients of 1, as in a sparse design matrix: infinite values stay in their places.
    """
    cdef const Spline* spline = <const Spline*>operation.table
    cdef double values[2 * MAX_DEGREE + 2]
    cdef double total
    cdef bint here
    cdef int32_t first, j, k
    if isnan(x):
        for j in range(operation.n_targets):
            numbers_of(block, operation.targets[j])[i] = NAN
        return
    first = interval_of(spline, x)
    basis_of(spline.knots, x, spline.degree, first, values)
    first -= spline.degree
    for j in range(operation.n_targets):
        total = 0.0
        for k in range(spline.degree + 1):
            here = (first + k) % spline.splines == j
            if here or not operation.flags:
                total += (1.0 if here else 0.0) * values[k]
        numbers_of(block, operation.targets[j])[i] = rounded(total, operation.single)


cdef void put_edge(const Operation* operation, const Block* block, Py_ssize_t i, double x) noexcept nogil:
    """The basis functions outside the range: their values at its end, or on along a line."""
    cdef const Spline* spline = <const Spline*>operation.table
    cdef bint below = x < spline.low
    cdef const double* values = spline.low_values if below else spline.high_values
    cdef const double* slopes = spline.low_slopes if below else spline.high_slopes
    cdef double total
    cdef int32_t j, depth
    for j in range(operation.n_targets):
        depth = j if below else spline.splines - 1 - j
        total = 0.0
        if depth < spline.reach:
            total = values[j]
            if slopes != NULL:
                total = total + (x - (spline.low if below else spline.high)) * slopes[j]
        numbers_of(block, operation.targets[j])[i] = rounded(total, operation.single)


cdef bint spline(const Operation* operation, const Block* block) noexcept nogil:
    """A missing value, where it gets here, makes zeros."""
    cdef const Spline* curve = <const Spline*>operation.table
    cdef const double* source = numbers_of(block, operation.source)
    cdef double start = curve.knots[curve.degree], x
    cdef double end = curve.knots[curve.n_knots - curve.degree - 1]
    cdef Py_ssize_t i, j
    for i in range(block.rows):
        x = source[i]
        if isnan(x):
            for j in range(operation.n_targets):
                numbers_of(block, operation.targets[j])[i] = 0.0
            continue
        if curve.mode == SPLINE_EDGES and (x < curve.low or x > curve.high):
            if x > curve.high and curve.high_values == NULL:
                return spoiled(operation, block, BAD_RECORD, SAYS_RANGE, i)
            put_edge(operation, block, i, x)
            continue
        if curve.mode == SPLINE_ERROR and (x < start or x > end):
            return spoiled(operation, block, BAD_RECORD, SAYS_RANGE, i)
        if curve.mode == SPLINE_PERIODIC:
            x = start + remainder_of(x - start, end - start) if end - start > 0.0 else 0.0
        put_basis(operation, block, i, x)
    return True


cdef int compile_spline(CompiledProgram program, Operation* operation, dict table) except -1:
    """``table``: knots, degree, splines, mode; with the mode "edges" low, high, reach and the values at both ends."""
    cdef Spline* found = <Spline*>own(program, sizeof(Spline))
    modes = {"edges": SPLINE_EDGES, "continue": SPLINE_CONTINUE, "periodic": SPLINE_PERIODIC, "error": SPLINE_ERROR}
    found.knots = own_numbers(program, table["knots"])
    found.n_knots, found.degree = <int32_t>len(table["knots"]), table["degree"]
    found.splines, found.mode = table["splines"], modes[table["mode"]]
    if not 0 <= found.degree <= MAX_DEGREE or found.n_knots < 2 * found.degree + 2:
        raise ConfigurationError(f"{found.n_knots} knots for splines of degree {found.degree}")
    if not operation.n_targets <= found.splines <= operation.n_targets + 1:
        raise ConfigurationError(f"{found.splines} splines and {operation.n_targets} values")
    operation.table = found
    if found.mode != SPLINE_EDGES:
        return 0
    found.low, found.high, found.reach = table["low"], table["high"], table["reach"]
    for name in ("low_values", "high_values", "low_slopes", "high_slopes"):
        if table[name] is not None and len(table[name]) != found.splines:
            raise ConfigurationError(f"{name}: {len(table[name])} for {found.splines} splines")
    found.low_values = own_numbers(program, table["low_values"])
    if table["high_values"] is not None:
        found.high_values = own_numbers(program, table["high_values"])
    if table["low_slopes"] is not None:
        found.low_slopes = own_numbers(program, table["low_slopes"])
        found.high_slopes = own_numbers(program, table["high_slopes"])
    return 0
