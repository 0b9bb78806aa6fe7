# What is decided of a model's numbers: a step of the batch behind the run, so that nothing downstream knows of it.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.math cimport INFINITY, NAN, fabs, isnan, log, rint
from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free

from fastinfer.errors import RuntimeFailedError

cdef double EXACT = 4503599627370496.0  # 2**52: from here on a double has no digit behind the point


@cython.final
cdef class Policy:
    """Bands, classes and scores of one output of a model, compiled at load; used by any thread.

    Args:
        inner: the runtime's signature.
        kept: names of its outputs that are answered too.
        source: the output that is judged: FP32 or FP64, [rows] or [rows, columns].
        column: of it that thresholds and score judge; -1 where nothing does.
        decision: name of the output of labels, or empty for none.
        thresholds: ascending; a number takes the label in the place of how many it reaches.
        classes: a threshold for each column, NaN for none; in place of ``thresholds``. Of the columns that reach theirs
            the largest is taken, else the largest of those without one, else the label behind the columns'.
        labels: one more than ``thresholds`` or ``classes``, then the one for NaN.
        score: (name, whether of log-odds, factor, offset, decimals or -1, low, high), or None.

    Raises:
        ConfigurationError: an output by that name is there already.
    """

    def __cinit__(self, Signature inner not None, *, kept, str source not None, int column=-1, str decision="",
                  thresholds=(), classes=(), labels=(), score=None):
        cdef Py_ssize_t i
        names = [tensor.name for tensor in inner.outputs]
        first = inner.outputs[names.index(source)].shape[0]
        self.inner = inner
        self.source = names.index(source)
        self.column = column
        self.decides = decision != ""
        self.scores = score is not None
        self.kept = [names.index(name) for name in kept]
        added = [Tensor(decision, "BYTES", (first,))] if self.decides else []
        if self.scores:
            name, self.log_odds, self.factor, self.offset, decimals, self.low, self.high = score
            self.scale = 10.0 ** decimals if decimals >= 0 else 0
            added.append(Tensor(name, "FP64", (first,)))
        self.added = tuple(tensor.name for tensor in added)
        self.signature = Signature([], [*[inner.outputs[k] for k in self.kept], *added], batched=inner.batched)
        self.n_thresholds = len(thresholds)
        self.n_classes = len(classes)
        self.turns = <double*>calloc(self.n_thresholds + self.n_classes + 1, sizeof(double))
        self.labels = <Span*>calloc(len(labels) + 1, sizeof(Span))
        if self.turns == NULL or self.labels == NULL:
            raise MemoryError
        for i, turn in enumerate([*thresholds, *classes]):
            self.turns[i] = turn
        texts = [label.encode() for label in labels]
        if self.decides and len(texts) != self.n_thresholds + self.n_classes + 2:
            raise ValueError("labels")
        self.text = b"".join(texts)
        for i in range(len(texts)):
            self.labels[i].length = len(texts[i])
            self.labels[i].offset = sum(map(len, texts[:i]))

    def __dealloc__(self):
        free(self.turns)
        free(self.labels)

    def apply(self, dict arrays not None):
        """The answer's outputs by name, of what the runtime gave by name; as ``decide``."""
        cdef Outputs outputs = self.decide(outputs_of(self.inner, [arrays[each.name] for each in self.inner.outputs]))
        return {tensor.name: outputs.array(k) for k, tensor in enumerate(self.signature.outputs)}

    cdef Outputs decide(self, Outputs given):
        """The outputs that are kept, and the policy's.

        Raises:
            RuntimeFailedError: the judged output has other columns than the policy is for.
        """
        cdef Result* judged = &given.results[self.source]
        cdef Outputs outputs = Outputs(self.signature)
        cdef Py_ssize_t rows, width, k
        cdef Span* spans = NULL
        cdef double* points = NULL
        cdef bytes block
        if judged.rank == 0:
            raise RuntimeFailedError("the model's output that is judged has no rows")
        rows = judged.shape[0]
        width = judged.count // rows if rows else inner_size(judged)
        if width <= self.column or (self.n_classes and width != self.n_classes):
            raise RuntimeFailedError(f"the model's output '{given.signature.outputs[self.source].name}' has {width} "
                                     f"values a row, {self.n_classes or self.column + 1} expected")
        owner = []
        for k in range(len(self.kept)):
            outputs.results[k] = given.results[<int>self.kept[k]]
            owner.append(given.owner[self.kept[k]] if isinstance(given.owner, list) else given)
        k = len(self.kept)
        if self.decides:
            block = PyBytes_FromStringAndSize(NULL, rows * <Py_ssize_t>sizeof(Span))
            spans = <Span*>PyBytes_AS_STRING(block)
            put_result(&outputs.results[k], DT_BYTES, sizeof(Span), rows, <const char*>spans)
            outputs.results[k].arena = PyBytes_AS_STRING(self.text)
            owner.append(block)
            k += 1
        if self.scores:
            block = PyBytes_FromStringAndSize(NULL, rows * <Py_ssize_t>sizeof(double))
            points = <double*>PyBytes_AS_STRING(block)
            put_result(&outputs.results[k], DT_FP64, sizeof(double), rows, <const char*>points)
            owner.append(block)
        outputs.owner = [*owner, given, self]
        with nogil:
            judge_rows(self, judged, rows, width, spans, points)
        return outputs


cdef void put_result(Result* result, Datatype datatype, size_t itemsize, Py_ssize_t rows, const char* data) noexcept:
    result.datatype = datatype
    result.itemsize = itemsize
    result.count = rows
    result.data = data
    result.arena = NULL
    result.rank = 1
    result.shape[0] = rows


cdef void judge_rows(Policy self, const Result* judged, Py_ssize_t rows, Py_ssize_t width, Span* spans,
                     double* points) noexcept nogil:
    cdef Py_ssize_t row
    cdef int32_t label
    for row in range(rows):
        if spans != NULL:
            if self.n_classes:
                label = class_of(self, judged, row * width)
            else:
                label = band_of(self, number_at(judged, row * width + self.column))
            spans[row] = self.labels[label]
        if points != NULL:
            points[row] = points_of(self, number_at(judged, row * width + self.column))


cdef inline double number_at(const Result* judged, Py_ssize_t index) noexcept nogil:
    if judged.datatype == DT_FP32:
        return (<const float*>judged.data)[index]
    return (<const double*>judged.data)[index]


cdef int32_t band_of(Policy self, double number) noexcept nogil:
    cdef int32_t reached = 0
    if isnan(number):
        return self.n_thresholds + 1
    while reached < self.n_thresholds and number >= self.turns[reached]:
        reached += 1
    return reached


cdef int32_t class_of(Policy self, const Result* judged, Py_ssize_t start) noexcept nogil:
    """The first of the largest, among the classes that reach their threshold, else among those that have none."""
    cdef int32_t reaching = self.n_classes, plain = self.n_classes
    cdef double reached = -INFINITY, largest = -INFINITY, number
    cdef int32_t k
    for k in range(self.n_classes):
        number = number_at(judged, start + k)
        if isnan(number):
            return self.n_classes + 1
        if isnan(self.turns[k]):
            if plain == self.n_classes or number > largest:
                plain, largest = k, number
        elif number >= self.turns[k] and (reaching == self.n_classes or number > reached):
            reaching, reached = k, number
    return reaching if reaching < self.n_classes else plain


cdef double points_of(Policy self, double number) noexcept nogil:
    """Multiplied, added, rounded, kept within its bounds, in this order; NaN stays NaN."""
    cdef double points
    if isnan(number):
        return NAN
    if self.log_odds:
        number = -INFINITY if number <= 0 else INFINITY if number >= 1 else log(number / (1 - number))
    points = self.offset + self.factor * number
    if self.scale and fabs(points) * self.scale < EXACT:
        points = rint(points * self.scale) / self.scale
    if points < self.low:
        points = self.low
    elif points > self.high:
        points = self.high
    return points + 0.0  # -0.0 is written as 0.0
