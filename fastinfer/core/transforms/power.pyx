# Kernels that change a distribution's shape: power transforms, quantiles, and scipy's logistic functions.
from libc.math cimport INFINITY, NAN, copysign, exp, expf, expm1, fabs, isnan, log, log1p, log1pf, logf, sqrt
from libc.stdint cimport int32_t

cdef double BOX_COX_TINY = 1e-19     # below it lambda counts as 0: scipy's xsf/boxcox.h
cdef double BOX_COX_LARGE = 709.78


cdef inline double box_cox_of(double value, double power) noexcept nogil:
    """scipy.special.boxcox, in its order."""
    cdef double logarithm = log(value)
    if fabs(power) < BOX_COX_TINY:
        return logarithm
    if power * logarithm < BOX_COX_LARGE:
        return expm1(power * logarithm) / power
    return copysign(1.0, power) * exp(power * logarithm - log(fabs(power))) - 1.0 / power


cdef bint check_positive(const Operation* operation, const Block* block) noexcept nogil:
    """Refuse what is zero or below; a missing value passes."""
    cdef const double* source = numbers_of(block, operation.source)
    cdef Py_ssize_t i
    for i in range(block.rows):
        if source[i] <= 0.0:
            return spoiled(operation, block, BAD_RECORD, SAYS_RANGE, i)
    return True


cdef bint box_cox(const Operation* operation, const Block* block) noexcept nogil:
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        target[i] = rounded(box_cox_of(source[i], operation.a), operation.single)
    return True


cdef bint yeo_johnson(const Operation* operation, const Block* block) noexcept nogil:
    """scipy.stats.yeojohnson. `a`: the power of values from 0 on, `b`: of negative ones; 0 stands for a logarithm.

    `table`: numpy's loops of log1p and expm1.
    """
    cdef const UfuncLoop* loops = <const UfuncLoop*>operation.table
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef double logarithms[BLOCK_ROWS]
    cdef double powers[BLOCK_ROWS]
    cdef bint single = operation.single, positive
    cdef double power, value
    cdef Py_ssize_t i
    for i in range(block.rows):
        logarithms[i] = source[i] if source[i] >= 0.0 else -source[i]
    run_loop(&loops[0], logarithms, logarithms, block.rows, single)
    for i in range(block.rows):
        power = operation.a if source[i] >= 0.0 else operation.b
        powers[i] = rounded(power * logarithms[i], single)
    run_loop(&loops[1], powers, powers, block.rows, single)
    for i in range(block.rows):
        positive = source[i] >= 0.0
        power = operation.a if positive else operation.b
        value = logarithms[i] if power == 0.0 else rounded(powers[i] / power, single)
        target[i] = value if positive else -value
    return True


cdef bint logistic(const Operation* operation, const Block* block) noexcept nogil:
    """scipy.special.expit."""
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef Py_ssize_t i
    for i in range(block.rows):
        if operation.single:
            target[i] = <double>(<float>1.0 / (<float>1.0 + expf(-<float>source[i])))
        else:
            target[i] = 1.0 / (1.0 + exp(-source[i]))
    return True


cdef bint log_odds(const Operation* operation, const Block* block) noexcept nogil:
    """scipy.special.logit: another formula around one half, where log(x / (1 - x)) loses digits."""
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef float single
    cdef double value
    cdef Py_ssize_t i
    for i in range(block.rows):
        value = source[i]
        if operation.single and (value < 0.3 or value > 0.65):
            single = <float>value
            target[i] = logf(single / (<float>1.0 - single))
        elif operation.single:
            single = <float>(2.0 * (value - 0.5))
            target[i] = log1pf(single) - log1pf(-single)
        elif value < 0.3 or value > 0.65:
            target[i] = log(value / (1.0 - value))
        else:
            value = 2.0 * (value - 0.5)
            target[i] = log1p(value) - log1p(-value)
    return True


# ---- quantiles ------------------------------------------------------------------------------------------------
cdef struct Quantiles:
    double* rising              # the quantiles, ascending; then the same with the sign changed, ascending
    double* falling
    double* references          # what the quantiles become, from 0 to 1; then the same with the sign changed
    double* opposites
    double threshold            # how near to an end is the end
    double lowest               # where the normal distribution is cut off
    double highest


cdef double interpolate(double value, const double* points, const double* results, int32_t count) noexcept nogil:
    """numpy.interp, in its order: numpy/_core/src/multiarray/compiled_base.c, arr_interp."""
    cdef int32_t low = 0, high = count, middle
    cdef double slope, result
    if value > points[count - 1]:
        return results[count - 1]
    if value < points[0]:
        return results[0]
    while low < high:
        middle = (low + high) // 2
        if value >= points[middle]:
            low = middle + 1
        else:
            high = middle
    low -= 1
    if low == count - 1 or points[low] == value:
        return results[low]
    slope = (results[low + 1] - results[low]) / (points[low + 1] - points[low])
    result = slope * (value - points[low]) + results[low]
    if isnan(result):
        result = slope * (value - points[low + 1]) + results[low + 1]
        if isnan(result) and results[low] == results[low + 1]:
            result = results[low]
    return result


cdef bint quantile(const Operation* operation, const Block* block) noexcept nogil:
    """Where the value stands among the quantiles, from below and from above, and the mean of both.

    With `flags`, mapped to the normal distribution.
    """
    cdef const Quantiles* quantiles = <const Quantiles*>operation.table
    cdef const double* source = numbers_of(block, operation.source)
    cdef double* target = numbers_of(block, operation.target)
    cdef int32_t count = operation.count
    cdef bint single = operation.single, below, above
    cdef double value, result
    cdef Py_ssize_t i
    for i in range(block.rows):
        value = source[i]
        if isnan(value):
            target[i] = value
            continue
        if operation.flags:
            below = rounded(value - quantiles.threshold, single) < quantiles.rising[0]
            above = rounded(value + quantiles.threshold, single) > quantiles.rising[count - 1]
        else:
            below, above = value == quantiles.rising[0], value == quantiles.rising[count - 1]
        result = 0.5 * (interpolate(value, quantiles.rising, quantiles.references, count)
                        - interpolate(-value, quantiles.falling, quantiles.opposites, count))
        result = 0.0 if below else 1.0 if above else rounded(result, single)
        if operation.flags:
            result = rounded(normal_quantile(result), single) * 1.0 + 0.0
            result = quantiles.lowest if result < quantiles.lowest else result
            result = quantiles.highest if result > quantiles.highest else result
        target[i] = rounded(result, single)
    return True


cdef int compile_quantiles(CompiledProgram program, Operation* operation, table) except -1:
    cdef Quantiles* found = <Quantiles*>own(program, sizeof(Quantiles))
    quantiles, references, found.threshold, found.lowest, found.highest = table
    if not len(quantiles) or len(quantiles) != len(references):
        raise ConfigurationError(f"{len(quantiles)} quantiles and {len(references)} references")
    operation.count = <int32_t>len(quantiles)
    found.rising = own_numbers(program, quantiles)
    found.falling = own_numbers(program, [-value for value in reversed(quantiles)])
    found.references = own_numbers(program, references)
    found.opposites = own_numbers(program, [-value for value in reversed(references)])
    operation.table = found
    return 0


# Cephes Math Library Release 2.1, copyright 1984, 1987, 1989 by Stephen L. Moshier: ndtri, as scipy.special has it.
cdef double* NORMAL_P0 = [-5.99633501014107895267E1, 9.80010754185999661536E1, -5.66762857469070293439E1,
                          1.39312609387279679503E1, -1.23916583867381258016E0]
cdef double* NORMAL_Q0 = [1.95448858338141759834E0, 4.67627912898881538453E0, 8.63602421390890590575E1,
                          -2.25462687854119370527E2, 2.00260212380060660359E2, -8.20372256168333339912E1,
                          1.59056225126211695515E1, -1.18331621121330003142E0]
cdef double* NORMAL_P1 = [4.05544892305962419923E0, 3.15251094599893866154E1, 5.71628192246421288162E1,
                          4.40805073893200834700E1, 1.46849561928858024014E1, 2.18663306850790267539E0,
                          -1.40256079171354495875E-1, -3.50424626827848203418E-2, -8.57456785154685413611E-4]
cdef double* NORMAL_Q1 = [1.57799883256466749731E1, 4.53907635128879210584E1, 4.13172038254672030440E1,
                          1.50425385692907503408E1, 2.50464946208309415979E0, -1.42182922854787788574E-1,
                          -3.80806407691578277194E-2, -9.33259480895457427372E-4]
cdef double* NORMAL_P2 = [3.23774891776946035970E0, 6.91522889068984211695E0, 3.93881025292474443415E0,
                          1.33303460815807542389E0, 2.01485389549179081538E-1, 1.23716634817820021358E-2,
                          3.01581553508235416007E-4, 2.65806974686737550832E-6, 6.23974539184983293730E-9]
cdef double* NORMAL_Q2 = [6.02427039364742014255E0, 3.67983563856160859403E0, 1.37702099489081330271E0,
                          2.16236993594496635890E-1, 1.34204006088543189037E-2, 3.28014464682127739104E-4,
                          2.89247864745380683936E-6, 6.79019408009981274425E-9]
cdef double EXP_MINUS_2 = 0.13533528323661269189
cdef double SQRT_2_PI = 2.50662827463100050242E0


cdef inline double polynomial_of(double x, double leading, const double* coefficients, int count) noexcept nogil:
    """Horner's rule, the highest power first, after a leading coefficient."""
    cdef int i
    for i in range(count):
        leading = leading * x + coefficients[i]
    return leading


cdef double normal_quantile(double probability) noexcept nogil:
    """scipy.stats.norm.ppf: infinite at 0 and 1, NaN outside."""
    cdef double x, y, z, square, first
    if not 0.0 < probability < 1.0:
        return -INFINITY if probability == 0.0 else INFINITY if probability == 1.0 else NAN
    y = probability
    if y > 1.0 - EXP_MINUS_2:
        y = 1.0 - y
    if y > EXP_MINUS_2:
        y = y - 0.5
        square = y * y
        x = y + y * (square * polynomial_of(square, NORMAL_P0[0], NORMAL_P0 + 1, 4)
                     / polynomial_of(square, 1.0, NORMAL_Q0, 8))
        return x * SQRT_2_PI
    x = sqrt(-2.0 * log(y))
    first = x - log(x) / x
    z = 1.0 / x
    if x < 8.0:
        z = z * polynomial_of(z, NORMAL_P1[0], NORMAL_P1 + 1, 8) / polynomial_of(z, 1.0, NORMAL_Q1, 8)
    else:
        z = z * polynomial_of(z, NORMAL_P2[0], NORMAL_P2 + 1, 8) / polynomial_of(z, 1.0, NORMAL_Q2, 8)
    x = first - z
    return x if probability > 1.0 - EXP_MINUS_2 else -x
