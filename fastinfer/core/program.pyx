# The feature program: a flat table of operations, compiled once at load, run over a request's rows without the GIL.
cimport cython
cimport numpy as cnp
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from typing import Any, NamedTuple

import numpy as np

from fastinfer.errors import ConfigurationError, InvalidRecordError, InvalidValueError, UnknownCategoryError

cdef Py_ssize_t SCRATCH_BYTES = 1 << 18     # what a block's registers may take: well inside a core's L2 cache
cdef Py_ssize_t VECTOR_BLOCK_ROWS = 32      # a row of text may have hundreds of features
cdef Py_ssize_t MAX_WIDTH = 0x7FFFFFFF


class Instruction(NamedTuple):
    """One operation of the flat table, as `preprocessing/lowering.py` writes it.

    Attributes:
        kernel: a name of ``KERNELS``.
        source: register, or raw column of a load.
        target: register, or output column of a store.
        column: raw column that an error names.
        single: the result is rounded to float32.
        a, b: the kernel's constants.
        flags: what counts as missing, 1 NaN, 2 None.
        table: the kernel's table, see `compile_table`.
        sources, targets: registers of a kernel that reads several, or writes several.
    """

    kernel: str
    source: int
    target: int
    column: int = 0
    single: bool = False
    a: float = 0.0
    b: float = 0.0
    flags: int = 0
    table: Any = None
    sources: tuple = ()
    targets: tuple = ()


cdef enum Place:
    NOWHERE, NUMBER, NUMBERS, TEXT, VECTOR, FP64_COLUMN, INT64_COLUMN, BOOL_COLUMN, BYTES_COLUMN
    OUTPUT_FLOAT32, OUTPUT_FLOAT64

cdef struct KernelEntry:
    Kernel kernel
    Place source
    Place target

cdef KernelEntry kernel_entry(str name) except *:
    """The kernel of that name, and where it reads and writes."""
    if name == "load_float64":
        return KernelEntry(load_float64, FP64_COLUMN, NUMBER)
    if name == "load_float32":
        return KernelEntry(load_float32, FP64_COLUMN, NUMBER)
    if name == "load_int64":
        return KernelEntry(load_int64, INT64_COLUMN, NUMBER)
    if name == "load_bool":
        return KernelEntry(load_bool, BOOL_COLUMN, NUMBER)
    if name == "load_text":
        return KernelEntry(load_text, BYTES_COLUMN, TEXT)
    if name == "load_time":
        return KernelEntry(load_time, BYTES_COLUMN, NUMBER)
    if name == "date_part":
        return KernelEntry(date_part, NUMBER, NUMBER)
    if name == "hash_bucket":
        return KernelEntry(hash_bucket, NOWHERE, NUMBER)
    if name == "take_row":
        return KernelEntry(take_row, NUMBER, NUMBERS)
    if name == "from_integer":
        return KernelEntry(from_integer, NUMBER, NUMBER)
    if name == "round_float32":
        return KernelEntry(round_float32, NUMBER, NUMBER)
    if name == "check_finite":
        return KernelEntry(check_finite, NUMBER, NOWHERE)
    if name == "check_not_infinite":
        return KernelEntry(check_not_infinite, NUMBER, NOWHERE)
    if name == "check_finite_float32":
        return KernelEntry(check_finite_float32, NUMBER, NOWHERE)
    if name == "check_not_infinite_float32":
        return KernelEntry(check_not_infinite_float32, NUMBER, NOWHERE)
    if name == "check_text":
        return KernelEntry(check_text, TEXT, NOWHERE)
    if name == "subtract":
        return KernelEntry(subtract, NUMBER, NUMBER)
    if name == "add":
        return KernelEntry(add, NUMBER, NUMBER)
    if name == "multiply":
        return KernelEntry(multiply, NUMBER, NUMBER)
    if name == "divide":
        return KernelEntry(divide, NUMBER, NUMBER)
    if name == "clip":
        return KernelEntry(clip, NUMBER, NUMBER)
    if name == "fill_missing":
        return KernelEntry(fill_missing, NUMBER, NUMBER)
    if name == "fill_equal":
        return KernelEntry(fill_equal, NUMBER, NUMBER)
    if name == "is_missing":
        return KernelEntry(is_missing, NUMBER, NUMBER)
    if name == "is_equal":
        return KernelEntry(is_equal, NUMBER, NUMBER)
    if name == "is_above":
        return KernelEntry(is_above, NUMBER, NUMBER)
    if name == "bucketize":
        return KernelEntry(bucketize, NUMBER, NUMBER)
    if name == "apply_function":
        return KernelEntry(apply_function, NUMBER, NUMBER)
    if name == "lookup_number":
        return KernelEntry(lookup_number, NUMBER, NUMBER)
    if name == "lookup_integer":
        return KernelEntry(lookup_integer, NUMBER, NUMBER)
    if name == "lookup_text":
        return KernelEntry(lookup_text, TEXT, NUMBER)
    if name == "is_code":
        return KernelEntry(is_code, NUMBER, NUMBER)
    if name == "fill_text":
        return KernelEntry(fill_text, TEXT, TEXT)
    if name == "is_text":
        return KernelEntry(is_text, TEXT, NUMBER)
    if name == "row_norm":
        return KernelEntry(row_norm, NUMBERS, NUMBER)
    if name == "divide_values":
        return KernelEntry(divide_values, NUMBERS, NUMBER)
    if name == "multiply_values":
        return KernelEntry(multiply_values, NUMBERS, NUMBER)
    if name == "constant":
        return KernelEntry(constant, NOWHERE, NUMBER)
    if name == "project":
        return KernelEntry(project, NUMBERS, NUMBERS)
    if name == "check_positive":
        return KernelEntry(check_positive, NUMBER, NOWHERE)
    if name == "box_cox":
        return KernelEntry(box_cox, NUMBER, NUMBER)
    if name == "yeo_johnson":
        return KernelEntry(yeo_johnson, NUMBER, NUMBER)
    if name == "logistic":
        return KernelEntry(logistic, NUMBER, NUMBER)
    if name == "log_odds":
        return KernelEntry(log_odds, NUMBER, NUMBER)
    if name == "quantile":
        return KernelEntry(quantile, NUMBER, NUMBER)
    if name == "spline":
        return KernelEntry(spline, NUMBER, NUMBERS)
    if name == "store_float32":
        return KernelEntry(store_float32, NUMBER, OUTPUT_FLOAT32)
    if name == "store_float64":
        return KernelEntry(store_float64, NUMBER, OUTPUT_FLOAT64)
    if name == "scatter_float32":
        return KernelEntry(scatter_float32, NUMBER, OUTPUT_FLOAT32)
    if name == "scatter_float64":
        return KernelEntry(scatter_float64, NUMBER, OUTPUT_FLOAT64)
    return vector_entry(name)


@cython.final
cdef class CompiledProgram:
    """A feature program as a flat table: loads, operations over registers, stores.

    Args:
        columns: the raw columns as inputs; no outputs.
        instructions: list of Instruction, in the order they run.
        numbers, texts, vectors: how many registers of each kind the instructions use.
        width: features out, one or more.
        dtype: of the output, "float32" or "float64".

    Raises:
        ConfigurationError: an unknown kernel, a register or column out of range.
    """

    def __cinit__(self, Signature columns not None, list instructions not None, Py_ssize_t numbers, Py_ssize_t texts,
                  Py_ssize_t width, str dtype not None, Py_ssize_t vectors=0):
        cdef Py_ssize_t i, row_scratch
        if dtype not in ("float32", "float64"):
            raise ConfigurationError(f"a program's output is float32 or float64, not {dtype!r}")
        if not 0 < width <= MAX_WIDTH or numbers < 0 or texts < 0 or vectors < 0:
            raise ConfigurationError("a program gives one feature or more")
        self.columns = columns
        self.width = width
        self.dtype = dtype
        self.row_bytes = width * (4 if dtype == "float32" else 8)
        self.n_numbers = numbers
        self.n_texts = texts
        self.n_vectors = vectors
        self.widths = [0] * vectors
        row_scratch = numbers * <Py_ssize_t>sizeof(double) + texts * <Py_ssize_t>sizeof(Text)
        self.block_rows = SCRATCH_BYTES // max(1, row_scratch)
        self.block_rows = min(max(self.block_rows, 8), BLOCK_ROWS if vectors == 0 else VECTOR_BLOCK_ROWS)
        self.owned = []
        self.n_operations = len(instructions)
        self.operations = <Operation*>calloc(self.n_operations + 1, sizeof(Operation))
        if self.operations == NULL:
            raise MemoryError
        for i in range(self.n_operations):
            compile_operation(self, &self.operations[i], instructions[i])

    def __dealloc__(self):
        free(self.operations)

    cdef bint run(self, Rows columns, Py_ssize_t start, Py_ssize_t rows, char* out, Failure* failure) noexcept nogil:
        """Preprocess ``rows`` rows of ``columns`` from row ``start`` into ``out``, row-major [rows, width].

        Re-entrant. False with the column and the row (counted from ``start``) in ``failure`` when a row cannot be
        preprocessed; ``out`` is then undefined.
        """
        cdef Block block
        cdef Py_ssize_t done = 0
        cdef bint fine = block_open(self, &block, min(rows, self.block_rows), failure)
        block.slabs, block.arena = columns.slabs, columns.arena.data
        while fine and done < rows:
            block.rows = min(rows - done, block.stride)
            block.row, block.offset = start + done, done
            fine = self.fill_block(&block, out)
            done += block.rows
        block_close(self, &block)
        return fine

    cdef bint run_columns(self, Columns columns, Py_ssize_t stride, char* out, SparseRows* sparse,
                          Failure* failure) noexcept nogil:
        """All rows of ``columns`` in blocks of ``stride``: into ``out``, or (NULL) into ``sparse``."""
        cdef Block block
        cdef Entries entries = Entries(NULL, 0, 0)
        cdef Py_ssize_t done = 0
        cdef bint fine = block_open(self, &block, stride, failure)
        block.slabs, block.entries = columns.slabs, &entries
        while fine and done < columns.rows:
            block.rows, block.offset = min(columns.rows - done, stride), done
            columns.seek(done, block.rows)
            fine = self.fill_block(&block, out) if out != NULL else self.enter_block(&block, sparse)
            done += block.rows
        block_close(self, &block)
        free(entries.data)
        return fine

    cdef bint fill_block(self, Block* block, char* out) noexcept nogil:
        cdef Py_ssize_t i
        block.out = out + <size_t>block.offset * self.row_bytes
        if self.sparse:
            memset(block.out, 0, <size_t>block.rows * self.row_bytes)
        for i in range(self.n_operations):
            if not self.operations[i].kernel(&self.operations[i], block):
                return False
        return True

    cdef bint enter_block(self, Block* block, SparseRows* sparse) noexcept nogil:
        cdef const Operation* operation
        cdef Py_ssize_t i
        for i in range(self.n_operations):
            operation = &self.operations[i]
            if not (operation.enter if operation.enter != NULL else operation.kernel)(operation, block):
                return False
        return sparse_append(sparse, block.entries, block)

    cdef object error(self, Failure* failure, Request request):
        """The error of a run that failed: names the row and the field, or where ``request`` has them, if there is one.
        """
        cdef str name, says, place
        if failure.fault == NO_MEMORY:
            return MemoryError()
        name = self.columns.inputs[failure.input].name
        says, place = f"row {failure.index}, field {name!r}: ", field_place(name, failure.index)
        if request is not None and request.kind != KIND_RECORDS:
            says, place = column_place(request, name, failure)
        if failure.fault == UNKNOWN_CATEGORY:
            return UnknownCategoryError(says + "a category that the feature program does not know", place)
        if failure.reason == SAYS_MISSING:
            says += "missing, and the feature program does not fill it"
        elif failure.reason == SAYS_INFINITE:
            says += "infinite"
        elif failure.reason == SAYS_TOO_LARGE:
            says += "too large for float32"
        elif failure.reason == SAYS_MANY:
            says += "more of one feature than float32 can count"
        elif failure.reason == SAYS_TIME:
            says += ("not a date as YYYY-MM-DD, or with a time as YYYY-MM-DDThh:mm:ss, a fraction, and Z or an offset "
                     "as +hh:mm")
        elif failure.reason == SAYS_YEAR:
            says += "outside the years 1 to 9999 in UTC"
        else:
            says += "outside what the feature program takes"
        if request is not None and request.kind != KIND_RECORDS:
            return InvalidValueError(says, place)
        return InvalidRecordError(says, place)

    def transform(self, columns not None):
        """Features of columns.

        Args:
            columns: `Columns` of this program's signature, or every raw column by name: float64, int64 or bool arrays,
                and for BYTES lists of str, None and NaN.

        Returns:
            array [rows, width] of the program's dtype.

        Raises:
            InvalidRecordError, UnknownCategoryError: a row that scikit-learn would refuse, too.
        """
        cdef Columns taken = self.taken(columns)
        cdef Py_ssize_t stride = taken.open(min(taken.rows, self.block_rows))
        cdef Failure failure
        cdef cnp.npy_intp[2] shape = [taken.rows, self.width]
        cdef int kind = cnp.NPY_FLOAT if self.dtype == "float32" else cnp.NPY_DOUBLE
        cdef cnp.ndarray out = cnp.PyArray_EMPTY(2, shape, kind, 0)
        cdef char* data = cnp.PyArray_BYTES(out)
        cdef bint done
        failure_clear(&failure)
        if taken.is_quick(self.width):
            done = self.run_columns(taken, stride, data, NULL, &failure)
        else:
            with nogil:
                done = self.run_columns(taken, stride, data, NULL, &failure)
        if not done:
            raise self.error(&failure, None)
        return out

    def transform_sparse(self, columns not None):
        """As `transform`, as the parts of a CSR matrix: what scikit-learn would store, each row's columns ascending.

        Returns:
            (values of the program's dtype, columns as int32, row ends with a leading 0 as int64).
        """
        cdef Columns taken = self.taken(columns)
        cdef Py_ssize_t stride = taken.open(min(taken.rows, self.block_rows))
        cdef Failure failure
        cdef SparseRows sparse = SparseRows(NULL, NULL, NULL, 0, 0)
        cdef cnp.npy_intp length = taken.rows + 1
        cdef cnp.ndarray ends = cnp.PyArray_ZEROS(1, &length, cnp.NPY_INT64, 0)
        cdef bint done
        sparse.ends = <int64_t*>cnp.PyArray_DATA(ends) + 1
        failure_clear(&failure)
        try:
            if taken.is_quick(self.width):
                done = self.run_columns(taken, stride, NULL, &sparse, &failure)
            else:
                with nogil:
                    done = self.run_columns(taken, stride, NULL, &sparse, &failure)
            if not done:
                raise self.error(&failure, None)
            values, indices = sparse_arrays(&sparse)
        finally:
            sparse_free(&sparse)
        if self.dtype != "float64":
            with np.errstate(over="ignore"):
                values = values.astype(self.dtype)
        return values, indices, ends

    cdef Columns taken(self, columns):
        if isinstance(columns, dict):
            return explicit_columns(self.columns, columns)
        if (<Columns?>columns).signature is not self.columns:
            raise ValueError("columns of another program")
        return columns

    def refusals(self, dict columns not None):
        """Which cells a program refuses: each row runs by itself, and goes on after a refusal.

        Args:
            columns: as for `transform`.

        Returns:
            list of (row, raw column), in order.
        """
        cdef Columns taken = self.taken(columns)
        cdef Failure failure
        cdef Block block
        cdef Entries entries = Entries(NULL, 0, 0)
        cdef Py_ssize_t row, i
        cdef const Operation* operation
        found = set()
        taken.open(1)
        failure_clear(&failure)
        try:
            if not block_open(self, &block, 1, &failure):
                raise MemoryError
            block.slabs, block.rows, block.entries = taken.slabs, 1, &entries
            for row in range(taken.rows):
                taken.seek(row, 1)
                entries.size = 0
                for i in range(self.n_operations):
                    operation = &self.operations[i]
                    if not (operation.enter if operation.enter != NULL else operation.kernel)(operation, &block):
                        if failure.fault == NO_MEMORY:
                            raise MemoryError
                        found.add((row, failure.input))
        finally:
            block_close(self, &block)
            free(entries.data)
        return sorted(found)


cdef bint block_open(CompiledProgram program, Block* block, Py_ssize_t stride, Failure* failure) noexcept nogil:
    """Registers for blocks of ``stride`` rows; `block_close` in any case."""
    cdef size_t numbers = <size_t>(program.n_numbers * stride) * sizeof(double)
    cdef size_t texts = <size_t>(program.n_texts * stride) * sizeof(Text)
    cdef char* scratch = <char*>malloc(numbers + texts + 1)
    memset(block, 0, sizeof(Block))
    block.numbers = <double*>scratch
    block.stride = stride
    block.width = program.width
    block.failure = failure
    if program.n_vectors:
        block.vectors = <Vector*>calloc(<size_t>program.n_vectors, sizeof(Vector))
    if scratch == NULL or (program.n_vectors and block.vectors == NULL):
        return fail(failure, NO_MEMORY, 0, -1, -1, -1)
    block.texts = <Text*>(scratch + numbers)
    return vectors_open(block.vectors, program.n_vectors, stride) or fail(failure, NO_MEMORY, 0, -1, -1, -1)


cdef void block_close(CompiledProgram program, Block* block) noexcept nogil:
    vectors_close(block.vectors, program.n_vectors)
    free(block.vectors)
    free(block.numbers)


cdef int place_limit(CompiledProgram program, Place place) except -1:
    if place == NUMBER or place == NUMBERS:
        return <int>program.n_numbers
    if place == TEXT:
        return <int>program.n_texts
    if place == VECTOR:
        return <int>program.n_vectors
    if place == OUTPUT_FLOAT32 or place == OUTPUT_FLOAT64:
        return <int>program.width
    return program.columns.n_inputs


cdef int compile_operation(CompiledProgram program, Operation* operation, instruction) except -1:
    cdef KernelEntry entry = kernel_entry(instruction.kernel)
    cdef Datatype wanted
    if (entry.source not in (NOWHERE, NUMBERS)
            and not 0 <= instruction.source < place_limit(program, entry.source)):
        raise ConfigurationError(f"{instruction.kernel}: source {instruction.source} is out of range")
    if (entry.target not in (NOWHERE, NUMBERS)
            and not 0 <= instruction.target < place_limit(program, entry.target)):
        raise ConfigurationError(f"{instruction.kernel}: target {instruction.target} is out of range")
    if not 0 <= instruction.column < program.columns.n_inputs:
        raise ConfigurationError(f"{instruction.kernel}: column {instruction.column} is out of range")
    if entry.source >= FP64_COLUMN:
        wanted = (DT_FP64 if entry.source == FP64_COLUMN else DT_INT64 if entry.source == INT64_COLUMN
                  else DT_BOOL if entry.source == BOOL_COLUMN else DT_BYTES)
        if program.columns.input_info[<int>instruction.source].datatype != wanted:
            raise ConfigurationError(f"{instruction.kernel}: column {instruction.source} has another datatype")
    if ((entry.target == OUTPUT_FLOAT32 and program.dtype != "float32")
            or (entry.target == OUTPUT_FLOAT64 and program.dtype != "float64")):
        raise ConfigurationError(f"{instruction.kernel}: the output is {program.dtype}")
    operation.kernel = entry.kernel
    operation.enter = entering(instruction.kernel)
    operation.source = instruction.source
    operation.target = instruction.target
    operation.column = instruction.column
    operation.single = instruction.single
    operation.a = instruction.a
    operation.b = instruction.b
    operation.flags = instruction.flags
    if entry.source == NUMBERS:
        operation.n_sources = <int32_t>len(instruction.sources)
        operation.sources = compile_registers(program, instruction.kernel, instruction.sources)
    if entry.target == NUMBERS:
        operation.n_targets = <int32_t>len(instruction.targets)
        operation.targets = compile_registers(program, instruction.kernel, instruction.targets)
    if entry.source == VECTOR or entry.target == VECTOR:
        compile_vector(program, operation, instruction)
    elif instruction.kernel == "hash_bucket":
        compile_bucket(program, operation, instruction)
    else:
        compile_table(program, operation, instruction.kernel, instruction.table)
    return 0


cdef int compile_table(CompiledProgram program, Operation* operation, str kernel, table) except -1:
    """What each kernel's table is: see the branches."""
    if kernel == "bucketize":                            # edges, ascending
        compile_numbers(program, operation, table)
    elif kernel == "apply_function":                     # a ufunc of one argument
        operation.table = own(program, sizeof(UfuncLoop))
        compile_function(program, operation, table, <UfuncLoop*>operation.table)
    elif kernel == "yeo_johnson":                        # (numpy.log1p, numpy.expm1)
        operation.table = own(program, 2 * sizeof(UfuncLoop))
        compile_function(program, operation, table[0], <UfuncLoop*>operation.table)
        compile_function(program, operation, table[1], <UfuncLoop*>operation.table + 1)
    elif kernel == "date_part":
        compile_part(operation)
    elif kernel == "take_row":                           # an array [rows, targets]
        compile_embedding(program, operation, table)
    elif kernel in ("divide_values", "multiply_values"):
        if operation.n_sources != 2:
            raise ConfigurationError(f"{kernel} takes two values")
    elif kernel == "project":                            # weights, row by row
        compile_numbers(program, operation, table)
        if operation.count != <int64_t>operation.n_sources * operation.n_targets:
            raise ConfigurationError("a projection has a weight for each source and target")
    elif kernel == "quantile":                           # (quantiles, references, threshold, lowest, highest)
        compile_quantiles(program, operation, table)
    elif kernel == "spline":                             # a mapping, see `compile_spline`
        compile_spline(program, operation, table)
    elif kernel in ("lookup_number", "lookup_integer", "lookup_text"):
        categories, codes, nan, none, unknown = table    # codes; None where refused
        compile_lookup(program, operation, kernel, categories, codes, nan, none, unknown)
    elif kernel in ("fill_text", "is_text"):             # (what counts as missing, the filling)
        compile_texts(program, operation, table)
    elif kernel in ("scatter_float32", "scatter_float64"):   # a code's output column, or -1
        compile_columns(program, operation, table)
    return 0


cdef void* own(CompiledProgram program, size_t size) except NULL:
    """Zeroed bytes that live as long as the program."""
    cdef Memory memory = Memory(size)
    program.owned.append(memory)
    return memory.data


cdef int32_t* compile_registers(CompiledProgram program, str kernel, tuple registers) except NULL:
    cdef Py_ssize_t count = len(registers), i
    cdef int32_t* found = <int32_t*>own(program, count * sizeof(int32_t))
    if not count:
        raise ConfigurationError(f"{kernel}: no registers")
    for i in range(count):
        if not 0 <= registers[i] < program.n_numbers:
            raise ConfigurationError(f"{kernel}: register {registers[i]} is out of range")
        found[i] = registers[i]
    return found


cdef double* own_numbers(CompiledProgram program, table) except NULL:
    cdef Py_ssize_t count = len(table), i
    cdef double* numbers = <double*>own(program, count * sizeof(double))
    for i in range(count):
        numbers[i] = table[i]
    return numbers


cdef int compile_numbers(CompiledProgram program, Operation* operation, table) except -1:
    operation.table = own_numbers(program, table)
    operation.count = <int32_t>len(table)
    return 0


cdef int compile_columns(CompiledProgram program, Operation* operation, table) except -1:
    cdef Py_ssize_t count = len(table), i
    cdef int32_t* columns = <int32_t*>own(program, count * sizeof(int32_t))
    for i in range(count):
        if not -1 <= table[i] < program.width:
            raise ConfigurationError(f"output column {table[i]} is out of range")
        columns[i] = table[i]
    operation.table = columns
    operation.count = <int32_t>count
    program.sparse = True
    return 0


cdef int compile_function(CompiledProgram program, Operation* operation, cnp.ufunc ufunc, UfuncLoop* loop) except -1:
    """Find the ufunc's loop from float64 to float64, or from float32 to float32."""
    cdef char wanted = <char>(cnp.NPY_FLOAT if operation.single else cnp.NPY_DOUBLE)
    cdef int i
    if ufunc.nin != 1 or ufunc.nout != 1:
        raise ConfigurationError(f"numpy.{ufunc.__name__} is not a function of one value")
    for i in range(ufunc.ntypes):
        if ufunc.types[2 * i] == wanted and ufunc.types[2 * i + 1] == wanted:
            loop.function = <UfuncFunction><void*>ufunc.functions[i]  # float loops need no GIL
            loop.data = ufunc.data[i]
            program.owned.append(ufunc)
            return 0
    raise ConfigurationError(f"numpy.{ufunc.__name__} does not map floats to floats of the same width")


cdef int put_text(CompiledProgram program, Text* text, value) except -1:
    cdef bytes encoded = value.encode()
    program.owned.append(encoded)
    text.data = <const char*>encoded
    text.size = len(encoded)
    return 0


cdef int compile_texts(CompiledProgram program, Operation* operation, table) except -1:
    cdef Text* texts = <Text*>own(program, 2 * sizeof(Text))
    for i in range(2):
        if table[i] is None:
            texts[i].data, texts[i].size = "", NONE_TEXT
        else:
            put_text(program, &texts[i], table[i])
    if not operation.flags and table[0] is None:
        raise ConfigurationError("nothing counts as missing")
    operation.table = texts
    return 0


cdef int compile_lookup(CompiledProgram program, Operation* operation, str kernel, list categories, list codes,
                        nan, none, unknown) except -1:
    """Categories to codes; ``nan``, ``none`` and ``unknown`` are the codes of those, None where they are refused."""
    cdef Py_ssize_t count = len(categories), i
    cdef uint64_t size = 4, position
    cdef Lookup* lookup = <Lookup*>own(program, sizeof(Lookup))
    cdef double number
    cdef int64_t integer
    cdef uint64_t key
    cdef Text text
    if len(codes) != count:
        raise ConfigurationError(f"{count} categories and {len(codes)} codes")
    while size < 2 * <uint64_t>count:
        size *= 2
    lookup.mask = size - 1
    lookup.slots = <LookupSlot*>own(program, size * sizeof(LookupSlot))
    lookup.codes = <double*>own(program, count * sizeof(double))
    lookup.data = <const char**>own(program, count * sizeof(char*))
    lookup.sizes = <uint64_t*>own(program, count * sizeof(uint64_t))
    for position in range(size):
        lookup.slots[position].index = -1
    for i in range(count):
        lookup.codes[i] = codes[i]
        if kernel == "lookup_text":
            put_text(program, &text, categories[i])
            lookup.data[i], lookup.sizes[i] = text.data, text.size
            key = text_key(&text)
            position = 0 if find_text(lookup, &text) < 0 else 1
        else:
            if kernel == "lookup_number":
                number = categories[i]
                key = number_key(number)
            else:
                integer = categories[i]
                key = <uint64_t>integer
            position = 0 if find_number(lookup, key) < 0 else 1
        if position:
            raise ConfigurationError(f"the category {categories[i]!r} stands twice")
        position = spread(key) & lookup.mask
        while lookup.slots[position].index >= 0:
            position = (position + 1) & lookup.mask
        lookup.slots[position].key = key
        lookup.slots[position].index = <int32_t>i
    if nan is not None:
        lookup.nan_code = nan
        lookup.flags |= HOLDS_NAN
    if none is not None:
        lookup.none_code = none
        lookup.flags |= HOLDS_NONE
    if unknown is not None:
        lookup.unknown_code = unknown
        lookup.flags |= TAKES_UNKNOWN
    operation.table = lookup
    return 0
