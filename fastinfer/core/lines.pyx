# Files of rows, block by block: where rows end, a JSON record a line into rows, and a prediction a line out.
cimport numpy as cnp
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t
from libc.string cimport memchr, memset

import numpy as np

cdef enum:
    ROW_CELLS = 4       # of a row: where it begins, where it ends, how many lines are before it, its fields


cdef struct Cut:
    const char* data
    Py_ssize_t size
    bint last                   # no more bytes follow
    Py_ssize_t used             # bytes up to the end of the last row, its line break included
    int64_t lines               # line breaks in those


def split_rows(data, Py_ssize_t most, bint last, str delimiter=None):
    """Where the rows of a block of text lie; empty ones are passed over.

    Args:
        data: bytes-like.
        most: rows to find at most.
        last: nothing follows the block, so that what is behind its last line break is a row too.
        delimiter: of CSV, whose quoted fields may hold line breaks; None: a row is a line, blank ones are empty.

    Returns:
        (rows, used, lines): int64 array [rows, 4] of begin, end without the line break, line breaks before it, and
        fields; the bytes and the line breaks up to where the last row ends.
    """
    cdef cnp.ndarray rows = np.empty((most, ROW_CELLS), dtype=np.int64)
    cdef int64_t* cells = <int64_t*>cnp.PyArray_DATA(rows)
    cdef char separator = c"\0"
    cdef bint quoted = delimiter is not None
    cdef Py_ssize_t count
    cdef Py_buffer view
    cdef Cut cut
    if quoted:
        separator = <char>ord(delimiter)
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        cut = Cut(<const char*>view.buf, view.len, last, 0, 0)
        with nogil:
            count = split_csv(&cut, cells, most, separator) if quoted else split_lines(&cut, cells, most)
    finally:
        PyBuffer_Release(&view)
    return rows[:count], cut.used, cut.lines


cdef inline void put_row(int64_t* cell, Py_ssize_t begin, Py_ssize_t end, int64_t lines, int64_t fields) noexcept nogil:
    cell[0], cell[1], cell[2], cell[3] = begin, end, lines, fields


cdef Py_ssize_t split_lines(Cut* cut, int64_t* cells, Py_ssize_t most) noexcept nogil:
    cdef const char* found
    cdef Py_ssize_t begin = 0, end, p, count = 0
    while count < most and begin < cut.size:
        found = <const char*>memchr(cut.data + begin, c"\n", <size_t>(cut.size - begin))
        if found == NULL and not cut.last:
            break
        end = cut.size if found == NULL else found - cut.data
        p = begin
        while p < end and cut.data[p] in (c" ", c"\t", c"\r"):
            p += 1
        if p < end:
            put_row(cells + ROW_CELLS * count, begin, end, cut.lines, 1)
            count += 1
        cut.lines += found != NULL
        begin = cut.used = end + (found != NULL)
    return count


cdef Py_ssize_t split_csv(Cut* cut, int64_t* cells, Py_ssize_t most, char delimiter) noexcept nogil:
    """Quotes count at the start of a field only, and double ones stand for one; a line ends with LF, CRLF or CR."""
    cdef const char* data = cut.data
    cdef Py_ssize_t size = cut.size, p = 0, begin = 0, count = 0
    cdef int64_t fields = 1, breaks = 0     # of the row; breaks are inside its quotes
    cdef bint start = True, inside = False  # of a field, of quotes
    cdef char c
    while count < most and p < size:
        c = data[p]
        p += 1
        if inside:
            if c == c'"':
                if p == size and not cut.last:
                    break
                if p < size and data[p] == c'"':
                    p += 1
                else:
                    inside = False
            elif c == c"\n":
                breaks += 1
        elif c == c'"' and start:
            inside, start = True, False
        elif c == delimiter:
            fields += 1
            start = True
        elif c == c"\n" or c == c"\r":
            if c == c"\r" and p == size and not cut.last:
                break  # a LF may follow
            if p - 1 > begin:
                put_row(cells + ROW_CELLS * count, begin, p - 1, cut.lines, fields)
                count += 1
            if c == c"\r" and p < size and data[p] == c"\n":
                p += 1
            cut.lines += 1 + breaks
            begin = cut.used = p
            fields, breaks, start = 1, 0, True
        else:
            start = False
    if cut.last and p == size and count < most and begin < size:
        put_row(cells + ROW_CELLS * count, begin, size, cut.lines, fields)
        count += 1
        cut.lines += breaks
        cut.used = size
    return count


def decode_lines(Signature signature not None, data, lines):
    """Decode a JSON record a line into rows, each by itself, as one sent by itself would be decoded.

    Args:
        signature: batched.
        data: bytes-like.
        lines: what ``split_rows`` found in it.

    Returns:
        (rows, faults): rows of the lines that can be decoded, in order; (number of the line, FastinferError) of the
        others. A message calls a line "record" and its number among ``lines``.
    """
    cdef cnp.ndarray cells = np.ascontiguousarray(lines, dtype=np.int64).reshape(-1, ROW_CELLS)
    cdef const int64_t* cell = <const int64_t*>cnp.PyArray_DATA(cells)
    cdef Request request = Request(signature)
    cdef Rows rows = Rows(signature)
    cdef Failure failure
    cdef Elements elements
    cdef Py_buffer view
    cdef const char* begin
    cdef char* text
    cdef Py_ssize_t count = cnp.PyArray_DIM(cells, 0), i = 0
    cdef bint done = True
    cdef int k
    faults = []
    # One byte before the first line: what finds out a record's dimensions looks behind a bracket.
    body = b"[" + bytes(data)
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        begin = <const char*>view.buf + 1
        if count and (cells[:, :2].min() < 0 or cells[:, :2].max() > view.len - 1 or
                      (cells[:, 0] > cells[:, 1]).any()):
            raise ValueError("a line outside its block")
        memset(request.stamps, 0, field_count(signature) * sizeof(Py_ssize_t))
        for k in range(signature.n_inputs):
            if signature.input_info[k].datatype == DT_BYTES and not rows.arena_reserve(<size_t>view.len):
                raise MemoryError
        elements.arena = rows.arena.data
        elements.text = text = rows.arena.data
        elements.json = &request.json
        i = 0
        while i < count:
            with nogil:
                while i < count:
                    done = decode_line(request, rows, begin + cell[ROW_CELLS * i], begin + cell[ROW_CELLS * i + 1],
                                       count, i, &elements, &failure)
                    i += 1
                    if not done:
                        break
                    rows.rows += 1
                    text = elements.text
            if not done:
                settle(request, &failure)
                faults.append((i - 1, request.error(&failure)))
                elements.text = text
                done = True
        rows.arena_size = <size_t>(elements.text - elements.arena)
    finally:
        PyBuffer_Release(&view)
    return rows, faults


cdef bint decode_line(Request self, Rows rows, const char* begin, const char* end, Py_ssize_t most, Py_ssize_t number,
                      Elements* elements, Failure* failure) noexcept nogil:
    """The record from ``begin`` to ``end``, in front of which there is a byte, into the next row."""
    cdef const char* p
    cdef int i
    failure_clear(failure)
    clear_request(self, KIND_RECORDS)
    self.json.begin = begin
    self.json.end = self.payload_end = end
    self.payload = begin - 1
    self.rows = 1
    p = skip_space(begin, end)
    if p >= end or p[0] != c'{':
        return fail(failure, BAD_RECORD, RECORD_OBJECT, p - begin, -1, number)
    if not scan_records(self, failure):
        failure.index = number
        return False
    if rows.rows == 0:
        for i in range(rows.count):
            if not rows.set_dims(i, self.ranks[i], &self.dims[i * MAX_RANK]):
                return fail(failure, NO_MEMORY, 0, -1, -1, -1)
        if expands(rows, most) or not rows.reserve(most):
            return fail(failure, NO_MEMORY, 0, -1, -1, -1)
    for i in range(rows.count):
        if not same_row(self, rows, i):
            return fail(failure, BAD_RECORD, RECORD_SHAPE, -1, i, number)
    # Its row is `rows.rows`; the record is called by its number.
    p = fill_record(self, p, rows, rows.rows - number, number, elements, failure)
    if p == NULL:
        return False
    p = skip_space(p, end)
    if p != end:
        return fail(failure, BAD_JSON, JSON_TRAILING, p - begin, -1, -1)
    return True


cdef bint same_row(Request self, Rows rows, int input) noexcept nogil:
    """Whether the record's tensor has the dimensions of those before it."""
    cdef int axis
    if self.ranks[input] != rows.ranks[input]:
        return False
    for axis in range(self.ranks[input]):
        if self.dims[input * MAX_RANK + axis] != rows.dims[input * MAX_RANK + axis]:
            return False
    return True


def transform_rows(CompiledProgram program not None, Rows rows not None, Py_ssize_t start, Py_ssize_t count):
    """Features [count, width] of rows from ``start``; as `CompiledProgram.transform`."""
    cdef Failure failure
    cdef cnp.ndarray out
    cdef char* data
    cdef bint done
    if rows.signature is not program.columns and rows.signature.inputs != program.columns.inputs:
        raise ValueError("rows of another signature")
    if not 0 <= start <= start + count <= rows.rows:
        raise ValueError("rows out of range")
    out = np.empty((count, program.width), dtype=program.dtype)
    data = <char*>cnp.PyArray_DATA(out)
    failure_clear(&failure)
    with nogil:
        done = count == 0 or program.run(rows, start, count, data, &failure)
    if not done:
        raise program.error(&failure, None)
    return out


def encode_lines(Encoder encoder not None, list outputs not None, numbers, list extras=None):
    """A prediction a line, its values written as in the answer to a record.

    Args:
        encoder: of a batched signature.
        outputs: an array an output of the signature.
        numbers: int64 array [rows], each line's member ``row``.
        extras: JSON text of each line's further members, with a comma in front of each.

    Raises:
        InvalidOutputError: an output that JSON cannot carry.
        RuntimeFailedError: an array that is not as the signature declares.
    """
    cdef cnp.ndarray rows = np.ascontiguousarray(numbers, dtype=np.int64).reshape(-1)
    cdef const int64_t* number = <const int64_t*>cnp.PyArray_DATA(rows)
    cdef Writer writer = Writer(NULL, 0, 0)
    cdef Py_ssize_t count = cnp.PyArray_DIM(rows, 0), row, k
    cdef View[FEW_VIEWS] few
    cdef View* views = open_views(<View*>few, encoder.n_members)
    cdef Outputs given = outputs_of(encoder.signature, outputs)
    cdef bytes extra
    cdef bint ok = True
    try:
        for k in range(encoder.n_members):
            open_member(encoder, &views[k], &encoder.members[k], given, 0, count)
        for row in range(count):
            put(&writer, b'{"row":')
            put_integer(&writer, number[row], False)
            if extras is not None:
                extra = extras[row]
                put(&writer, extra)
            ok = not encoder.n_members or writer_put(&writer, b",", 1)
            for k in range(encoder.n_members):
                ok = ok and put_member(&writer, &views[k], &encoder.members[k], row, 1)
            if not ok or not writer_put(&writer, b"}\n", 2):
                raise MemoryError
        return PyBytes_FromStringAndSize(writer.data, <Py_ssize_t>writer.size)
    finally:
        close_views(views, encoder.n_members, <View*>few)
        writer_free(&writer)
