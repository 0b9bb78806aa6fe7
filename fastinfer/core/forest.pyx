# What is answered of trees: sums become probabilities, labels and values, in the arithmetic of the model's own library.
cimport cython
cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.math cimport NAN, logf
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

import numpy as np

from fastinfer.errors import ModelLoadError, RuntimeFailedError

cdef extern from *:
    """
    namespace fastinfer {
    // ---- sums to answers ------------------------------------------------------------------------------------------
    inline double sigmoid(double x, double slope) { return 1.0 / (1.0 + std::exp(-slope * x)); }
    inline float sigmoid(float x, float) {          // XGBoost's own
        return 1.0f / (std::exp(std::min(-x, 88.7f)) + 1.0f);
    }

    template <typename Sum> void link_row(Sum* row, int64_t outputs, int link, double slope) {
        if (link == SOFTMAX) {
            Sum top = row[0];
            double total = 0;
            for (int64_t k = 1; k < outputs; ++k)
                top = std::max(row[k], top);
            for (int64_t k = 0; k < outputs; ++k) {
                row[k] = std::exp(row[k] - top);
                total += row[k];
            }
            for (int64_t k = 0; k < outputs; ++k)
                row[k] /= static_cast<Sum>(total);
            return;
        }
        for (int64_t k = 0; k < outputs; ++k) {
            const Sum x = row[k];
            if (link == SIGMOID)
                row[k] = sigmoid(x, static_cast<Sum>(slope));
            else if (link == EXPONENTIAL)
                row[k] = std::exp(x);
            else if (link == ROUNDED_EXPONENTIAL)
                row[k] = static_cast<Sum>(std::exp(static_cast<double>(x)));
            else if (link == SIGNED_SQUARE)
                row[k] = static_cast<Sum>((x > 0) - (x < 0)) * x * x;
            else if (link == SOFTPLUS)
                row[k] = std::log1p(std::exp(x));
            else if (link == STEP)
                row[k] = x > 0;
        }
    }

    template <typename Sum> int64_t highest(const Sum* row, int64_t outputs) {
        int64_t best = 0;
        for (int64_t k = 1; k < outputs; ++k)
            if (row[k] > row[best])
                best = k;
        return best;
    }

    template <typename Sum, typename Out>
    void answer_row(Sum* row, int64_t outputs, double divisor, int link, double slope, int rule, int64_t classes,
                    Out* answers, int64_t* place) {
        if (divisor != 0)
            for (int64_t k = 0; k < outputs; ++k)
                row[k] /= static_cast<Sum>(divisor);
        const Sum raw = row[0];
        if (rule == HIGHEST)
            *place = highest(row, outputs);
        link_row(row, outputs, link, slope);
        if (classes == 2 && outputs == 1) {
            const Sum pair[2] = {static_cast<Sum>(1) - row[0], row[0]};
            *place = rule == ABOVE_ZERO ? raw > 0 : rule == FROM_ZERO ? raw >= 0
                     : rule == ABOVE_HALF ? pair[1] > static_cast<Sum>(0.5) : highest(pair, 2);
            answers[0] = static_cast<Out>(pair[0]);
            answers[1] = static_cast<Out>(pair[1]);
            return;
        }
        if (classes && rule != HIGHEST)
            *place = highest(row, outputs);
        for (int64_t k = 0; k < outputs; ++k)
            answers[k] = static_cast<Out>(row[k]);
    }

    inline void answer_rows(void* sums, bool single_sums, int64_t rows, int64_t outputs, double divisor, int link,
                            double slope, int rule, int64_t classes, void* answers, bool single_answers,
                            int64_t* places) {
        const int64_t wide = classes ? classes : outputs;
        for (int64_t r = 0; r < rows; ++r) {
            float* single = static_cast<float*>(sums) + r * outputs;
            double* full = static_cast<double*>(sums) + r * outputs;
            float* single_to = static_cast<float*>(answers) + r * wide;
            double* full_to = static_cast<double*>(answers) + r * wide;
            int64_t* place = places + r;
            if (single_sums && single_answers)
                answer_row(single, outputs, divisor, link, slope, rule, classes, single_to, place);
            else if (single_sums)
                answer_row(single, outputs, divisor, link, slope, rule, classes, full_to, place);
            else if (single_answers)
                answer_row(full, outputs, divisor, link, slope, rule, classes, single_to, place);
            else
                answer_row(full, outputs, divisor, link, slope, rule, classes, full_to, place);
        }
    }
    }
    """
    void answer_rows "fastinfer::answer_rows"(void*, bint, int64_t, int64_t, double, int, double, int, int64_t, void*,
                                              bint, int64_t*) nogil

cdef enum:
    BLOCK_BYTES = 32768             # of the keys of rows that go through the trees together: a first cache's worth
    LEAST_BLOCK = 16                # rows: the keys of a group of them fill one line of a cache
    MOST_BLOCK = 64
    MOST_WIDTH = 16_384
    MOST_OUTPUTS = 65_536

# How a node reads its feature, as bits of a split's `kind`.
SPLITS = {"flushed": 1, "nan_as_zero": 2, "zero_as_missing": 4, "sentinel": 8, "code": 16, "table": 32,
          "towards_zero": 64, "missing_right": 128}
CATEGORICAL = SPLITS["code"] | SPLITS["table"]
LINKS = ("identity", "sigmoid", "softmax", "exponential", "rounded_exponential", "signed_square", "softplus",
         "step")
RULES = ("most_probable", "highest", "above_zero", "from_zero", "above_half")
ARRAYS = {"starts": ("int64",), "left": ("int32",), "right": ("int32",), "feature": ("int32",), "kind": ("uint8",),
          "threshold": ("float32", "float64"), "leaves": ("float32", "float64"), "target": ("int32",),
          "start": ("float32", "float64"), "set_starts": ("int64",), "sets": ("uint32",), "table_features": ("int32",),
          "table_starts": ("int64",), "tables": ("float64",)}
FLAWS = ("", "its nodes are not a tree: a child is out of range, or has two parents", "there is no such column",
         "it adds to an output that there is not", "its leaves or sets are more than are given",
         "a threshold or a leaf is not a number", "it has no nodes")


cdef class Engine:
    """What the core runs batches on without coming back to Python."""

    cdef Outputs run_rows(self, Signature signature, Rows rows, Batch batch):
        """Where it may take for ever, ``batch.call`` is what ends it, from another thread."""
        raise NotImplementedError


@cython.final
cdef class Forest(Engine):
    """Trees whose leaves are added up, and what is answered of the sums.

    Nodes are given tree by tree as parallel arrays; node 0 of a tree is its root. Leaves' values and sets of categories
    are given in the order of the nodes that they belong to.

    Args:
        arrays: by name:
            starts: int64 [trees + 1], where each tree's nodes begin.
            left, right: int32 [nodes], children by their place in the tree; ``left`` is -1 at a leaf.
            feature: int32 [nodes].
            kind: uint8 [nodes], how a node reads its feature: a sum of SPLITS.
            threshold: float32 or float64 [nodes], the type in which values are read and compared; one goes left that
                is at most the threshold, with ``strict`` one that is less.
            leaves: float32 or float64 [leaves, 1 or outputs], the type in which they are added up.
            target: int32 [trees], the output that a tree adds to, where a leaf has one value.
            start: of the leaves' type [outputs], what the sums begin with.
            set_starts, sets: int64 [sets + 1] and uint32 [words], of the nodes that split on categories; bit 0:
                whether a missing value goes right, bit 1: one that has no bit, bit 2 and on: category 0 and on.
            table_features, table_starts, tables: int32 [tables], int64 [tables + 1], float64; for nodes of kind
                "table": the features that have one, where it begins, and its values, ascending; a value's place among
                them is its category.
        width: features of a row.
        sentinel: for nodes of kind "sentinel": the value that stands for a missing one.
        divisor: of the sums, or 0.
        link: of LINKS, with ``slope`` for "sigmoid".
        labels: of the classes, int64, bool or object (str), for a classifier; where it has one output, that is the
            second class's probability.
        rule: of RULES: how the label is chosen.
        answers: "FP32" or "FP64", of the probabilities or the value.

    Attributes:
        inputs, outputs: (name, datatype, shape), -1 for the rows: ``features``; ``label`` and ``probabilities`` of a
            classifier, ``value`` otherwise.

    Raises:
        ModelLoadError: the arrays are no forest; the message says what is wrong.
    """

    def __init__(self, dict arrays not None, *, int64_t width, bint strict=False, double sentinel=NAN,
                 double divisor=0.0, str link="identity", double slope=1.0, labels=None, str rule="most_probable",
                 str answers="FP64"):
        need(0 < width <= MOST_WIDTH, f"a row has 1 to {MOST_WIDTH:,} features, not {width:,}")
        need(set(ARRAYS) == set(arrays), f"its arrays are not {', '.join(ARRAYS)}")
        for name, dtypes in ARRAYS.items():
            array = arrays[name]
            need(isinstance(array, np.ndarray) and array.dtype.name in dtypes
                 and array.ndim == (2 if name == "leaves" else 1) and array.flags.c_contiguous and array.flags.aligned
                 and array.dtype.isnative, f"{name} is not an array of {' or '.join(dtypes)}")
        need(link in LINKS and rule in RULES and answers in ("FP32", "FP64"), f"{link}, {rule}, {answers} is no answer")
        self.width = width
        self.sentinel = sentinel
        self.divisor, self.slope = divisor, slope
        self.link, self.rule = LINKS.index(link), RULES.index(rule)
        self.single_answers = answers == "FP32"
        self.plant(arrays, strict)
        self.name_classes(labels)
        kind = "FP32" if self.single_values else "FP64"
        self.inputs = [("features", kind, (-1, width))]
        if self.classes:
            self.outputs = [("label", self.label_type, (-1,)), ("probabilities", answers, (-1, self.classes))]
        else:
            self.outputs = [("value", answers, (-1, self.ensemble.outputs))]

    def __dealloc__(self):
        del self.ensemble

    cdef int plant(self, dict arrays, bint strict) except -1:
        """Check the arrays and lay the trees out."""
        cdef Natural given
        cdef int flaw = 0
        cdef int64_t place = 0
        starts, left, kind, leaves = (arrays[name] for name in ("starts", "left", "kind", "leaves"))
        feature, threshold, start = arrays["feature"], arrays["threshold"], arrays["start"]
        set_starts, sets = arrays["set_starts"], arrays["sets"]
        nodes, inner = len(left), left >= 0
        self.single_values = threshold.dtype == np.float32
        self.single_sums = leaves.dtype == np.float32
        need(self.single_values or not self.single_sums, "float64 thresholds have float64 leaves")
        need(all(len(arrays[name]) == nodes for name in ("right", "feature", "kind", "threshold")),
             "its nodes' arrays are not of one length")
        check_starts(starts, nodes, "starts")
        need(len(arrays["target"]) == len(starts) - 1, "target has not a value for each tree")
        need(start.dtype == leaves.dtype and 0 < len(start) <= MOST_OUTPUTS and np.isfinite(start).all(),
             f"start is not one finite number for each of 1 to {MOST_OUTPUTS:,} outputs")
        need(leaves.shape[1] in (1, len(start)) and len(leaves) == nodes - inner.sum(),
             "leaves has not the values of each leaf")
        need(((feature >= 0) & (feature < self.width))[inner].all(), f"a node reads none of the {self.width} features")
        categorical = ((kind & CATEGORICAL != 0) & inner).astype(np.uint8)
        check_starts(set_starts, len(sets), "set_starts")
        need(len(set_starts) - 1 == categorical.sum() and len(sets) < 1 << 30,
             "sets has not a set for each that is used")
        ways, column = np.unique(np.where(inner, feature, 0).astype(np.int64) << 8 | np.where(inner, kind, 0),
                                 return_inverse=True)
        column = column.astype(np.int32)
        self.read_ways(ways, arrays["table_features"], arrays["table_starts"], arrays["tables"])
        given.trees, given.columns, given.outputs = len(starts) - 1, len(ways), len(start)
        given.leaf_width, given.leaves, given.sets = leaves.shape[1], len(leaves), len(set_starts) - 1
        given.starts = <const int64_t*>cnp.PyArray_DATA(starts)
        given.left = <const int32_t*>cnp.PyArray_DATA(left)
        given.right = <const int32_t*>cnp.PyArray_DATA(arrays["right"])
        given.column = <const int32_t*>cnp.PyArray_DATA(column)
        given.target = <const int32_t*>cnp.PyArray_DATA(arrays["target"])
        given.categorical = <const uint8_t*>cnp.PyArray_DATA(categorical)
        given.thresholds = cnp.PyArray_DATA(threshold)
        given.values = cnp.PyArray_DATA(leaves)
        given.readers = self.reader_data
        given.set_starts = <const int64_t*>cnp.PyArray_DATA(set_starts)
        given.set_words = <const uint32_t*>cnp.PyArray_DATA(sets)
        given.strict = strict
        with nogil:
            self.ensemble = plant_forest(given, self.single_values, self.single_sums, &flaw, &place)
        if self.ensemble == NULL:
            raise ModelLoadError(f"tree {place}: {FLAWS[flaw]}")
        self.start = start.tobytes()
        self.start_data = self.start
        self.block = BLOCK_BYTES // max(1, len(ways) * <Py_ssize_t>self.ensemble.key_size)
        self.block = max(LEAST_BLOCK, min(MOST_BLOCK, self.block)) // LEAST_BLOCK * LEAST_BLOCK
        return 0

    cdef int read_ways(self, ways, features, starts, tables) except -1:
        """One Reader for each way in which a feature is read."""
        cdef Reader* readers
        cdef Py_ssize_t i
        check_starts(starts, len(tables), "table_starts")
        need(len(features) == len(starts) - 1, "table_features has not a feature for each table")
        of = {}
        for i in range(len(features)):
            table = tables[starts[i]:starts[i + 1]]
            need((np.diff(table) > 0).all(), f"the table of feature {features[i]} does not ascend")
            of[int(features[i])] = (starts[i], len(table))
        self.readers = PyBytes_FromStringAndSize(NULL, len(ways) * <Py_ssize_t>sizeof(Reader))
        self.tables = tables.tobytes()
        readers = <Reader*>PyBytes_AS_STRING(self.readers)
        self.reader_data, self.table_data = readers, <const double*>PyBytes_AS_STRING(self.tables)
        for i in range(len(ways)):
            readers[i].feature, readers[i].how = <int32_t>(ways[i] >> 8), <uint32_t>(ways[i] & 255)
            readers[i].table, readers[i].table_size = 0, 0
            if readers[i].how & <uint32_t>SPLITS["table"]:
                need(readers[i].feature in of, f"feature {readers[i].feature} has no table of categories")
                readers[i].table, readers[i].table_size = of[readers[i].feature]
        return 0

    cdef int name_classes(self, labels) except -1:
        """Keep the labels as elements of the output; of text, each a Span of one block."""
        cdef Py_ssize_t i
        cdef Span span
        if labels is None:
            return 0
        self.classes = len(labels)
        need(self.classes == max(2, self.ensemble.outputs),
             f"{self.classes} labels do not go with {self.ensemble.outputs} outputs")
        if labels.dtype in (np.int64, np.bool_):
            self.label_type = "INT64" if labels.dtype == np.int64 else "BOOL"
            self.label_size = labels.itemsize
            self.labels = labels.tobytes()
            self.label_data = self.labels
            return 0
        need(all(isinstance(label, str) for label in labels), "labels are text, integers or booleans")
        self.label_type, self.label_size = "BYTES", sizeof(Span)
        texts = [label.encode() for label in labels]
        self.labels, self.label_texts = b"", b"".join(texts) + b"\0"
        span.offset = 0
        for i in range(self.classes):
            span.length = <uint64_t>len(texts[i])
            self.labels += (<char*>&span)[:sizeof(Span)]
            span.offset += span.length
        self.label_data = self.labels
        return 0

    def run(self, dict arrays not None):
        """Answer rows.

        Args:
            arrays: ``features``, C-contiguous [rows, width] of the declared datatype.

        Returns:
            dict of output name to array.

        Raises:
            ValueError: an array that is not as declared.
        """
        cdef cnp.ndarray array = arrays["features"]
        if not (cnp.PyArray_ISCARRAY_RO(array) and cnp.PyArray_NDIM(array) == 2
                and cnp.PyArray_TYPE(array) == (cnp.NPY_FLOAT32 if self.single_values else cnp.NPY_FLOAT64)
                and cnp.PyArray_DIM(array, 1) == self.width):
            raise ValueError(f"features is not a C-contiguous array of {self.inputs[0][1]} with {self.width} columns")
        signature = Signature([], [Tensor(*each) for each in self.outputs])
        cdef Outputs outputs = self.answer(signature, cnp.PyArray_DATA(array), cnp.PyArray_DIM(array, 0))
        return {self.outputs[k][0]: np.array(outputs.array(k)) for k in range(len(self.outputs))}

    cdef Outputs run_rows(self, Signature signature, Rows rows, Batch batch):
        cdef int first = 0 if signature.batched else 1
        cdef int64_t count = rows.rows if signature.batched else rows.dims[0]
        if rows.ranks[0] != first + 1 or rows.dims[first] != self.width:
            raise RuntimeFailedError(f"the trees take rows of {self.width} features")
        return self.answer(signature, rows.slabs[0].data, count)

    cdef Outputs answer(self, Signature signature, const void* rows, int64_t count):
        """Run with the interpreter's lock released, into one block that the outputs own."""
        cdef int64_t n = self.ensemble.outputs
        cdef int64_t wide = self.classes if self.classes else n
        cdef size_t itemsize = 4 if self.single_answers else 8
        cdef size_t numbers = <size_t>(count * wide) * itemsize
        cdef Outputs outputs = Outputs(signature)
        cdef bytes block = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>(numbers + <size_t>count * self.label_size + 8))
        cdef char* data = PyBytes_AS_STRING(block)
        cdef char* labels = data + (numbers + 7) // 8 * 8
        cdef bint done
        with nogil:
            done = self.fill(<const char*>rows, count, data, labels)
        if not done:
            raise MemoryError
        outputs.owner = block
        if self.classes:
            lay_result(outputs, 0, labels, count, -1)
            if self.label_texts is not None:
                outputs.results[0].arena = self.label_texts
            lay_result(outputs, 1, data, count, wide)
        else:
            lay_result(outputs, 0, data, count, wide)
        return outputs

    cdef bint fill(self, const char* rows, int64_t count, char* answers, char* labels) noexcept nogil:
        """Answer rows block by block; False when there is no memory."""
        cdef int64_t n = self.ensemble.outputs, wide = self.classes if self.classes else n
        cdef int64_t block = min(<int64_t>self.block, count)
        cdef size_t keys = <size_t>((block + 15) // 16 * 16 * self.ensemble.columns) * self.ensemble.key_size
        cdef size_t row_sums = <size_t>n * self.ensemble.sum_size
        cdef size_t row_bytes = <size_t>self.width * (4 if self.single_values else 8)
        cdef size_t row_answers = <size_t>wide * (4 if self.single_answers else 8)
        cdef Slab scratch
        cdef char* sums
        cdef int64_t* places
        cdef int64_t begin, size, r
        scratch.data = NULL
        scratch.capacity = 0
        if not slab_reserve(&scratch, 0, keys + <size_t>block * (row_sums + sizeof(int64_t)) + ALIGNMENT):
            return False
        sums = scratch.data + keys
        places = <int64_t*>(sums + (<size_t>block * row_sums + 7) // 8 * 8)
        begin = 0
        while begin < count:
            size = min(block, count - begin)
            for r in range(size):
                memcpy(sums + <size_t>r * row_sums, self.start_data, row_sums)
            self.ensemble.add(rows + <size_t>begin * row_bytes, <size_t>self.width, size, self.reader_data,
                              self.table_data, self.sentinel, scratch.data, sums)
            answer_rows(sums, self.single_sums, size, n, self.divisor, self.link, self.slope, self.rule, self.classes,
                        answers + <size_t>begin * row_answers, self.single_answers, places)
            if self.classes:
                for r in range(size):
                    memcpy(labels + <size_t>(begin + r) * self.label_size,
                           self.label_data + <size_t>places[r] * self.label_size, self.label_size)
            begin += size
        slab_free(&scratch)
        return True


def natural_logs(values not None):
    """Of a float32 array [n], as the C library gives them, which boosters ask: it does not always round to nearest."""
    cdef cnp.ndarray array = np.array(values, dtype=np.float32)
    cdef float* data = <float*>cnp.PyArray_DATA(array)
    cdef Py_ssize_t i
    for i in range(cnp.PyArray_SIZE(array)):
        data[i] = logf(data[i])
    return array


cdef int need(bint holds, str reason) except -1:
    if not holds:
        raise ModelLoadError(reason)
    return 0


cdef int check_starts(starts, size, str name) except -1:
    """Where parts begin in something of so many elements, none of them empty, and its end."""
    return need(len(starts) > 0 and starts[0] == 0 and starts[len(starts) - 1] == size and (np.diff(starts) > 0).all(),
                f"{name} does not say where each part begins")


cdef void lay_result(Outputs outputs, int k, const char* data, int64_t rows, int64_t columns) noexcept:
    """Output ``k`` is [rows, columns], or [rows] where there are no columns."""
    cdef Result* result = &outputs.results[k]
    result.datatype = outputs.signature.output_info[k].datatype
    result.itemsize = outputs.signature.output_info[k].itemsize
    result.data = data
    result.rank = 1 if columns < 0 else 2
    result.shape[0] = rows
    result.shape[1] = columns
    result.count = rows if columns < 0 else rows * columns
