# Answers: a model's outputs as Open Inference Protocol JSON, its binary extension, or predictions for records.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

cdef enum:
    RELEASE = 2048              # elements from which rendering lets other threads run


class Task(NamedTuple):
    """What a model's outputs mean, for the answers to records.

    Attributes:
        kind: ``classifier`` or ``regressor``.
        label: (classifier) output of the predicted class.
        probabilities: (classifier) output [rows, classes], or None.
        classes: text of each class, in the order of the columns of ``probabilities``.
        value: (regressor) output of the prediction.
    """

    kind: str
    label: str | None = None
    probabilities: str | None = None
    classes: tuple = ()
    value: str | None = None


@cython.final
cdef class Encoder:
    """Writes the answers of one model version; used by any thread.

    Args:
        name, version: as the answers name the model.
        signature: the wire's.
        task: what the outputs mean, or None: then predictions name the outputs.

    Raises:
        ConfigurationError: a task that names an output which the signature lacks.
    """

    def __init__(self, str name not None, str version not None, Signature signature not None, task=None):
        self.signature = signature
        self.opening = f'{{"model_name":{quote(name)},"model_version":{quote(version)}'.encode()
        self.heads = [f'{{"name":{quote(tensor.name)},"datatype":"{tensor.datatype}","shape":['.encode()
                      for tensor in signature.outputs]
        self.fields = record_fields(signature, task)

    cdef object infer(self, Request request, list outputs, Py_ssize_t start, Py_ssize_t rows):
        """The answer to an inference request from rows ``start`` to ``start + rows`` of ``outputs``.

        ``outputs`` are C-contiguous arrays in the order of the signature's outputs.

        Returns:
            (body, length of its JSON where binary tensors follow, else -1).

        Raises:
            InvalidOutputError: an output that JSON cannot carry.
            RuntimeFailedError: an array that is not as the signature declares.
        """
        cdef View* views = <View*>calloc(request.n_wanted + 1, sizeof(View))
        cdef Writer writer = Writer(NULL, 0, 0)
        cdef int k
        if views == NULL:
            raise MemoryError
        try:
            put_opening(self, &writer, request, b',"outputs":[')
            for k in range(request.n_wanted):
                if k:
                    put(&writer, b",")
                put_output(self, &writer, &views[k], request.wanted[k], outputs, start, rows)
            put(&writer, b"]}")
            return join(&writer, views, request)
        finally:
            writer_free(&writer)
            for k in range(request.n_wanted):
                close_view(&views[k])
            free(views)

    cdef object records(self, Request request, list outputs, Py_ssize_t start, Py_ssize_t rows):
        """The answer to records, a prediction a row (one for all where the model is not batched).

        Returns and raises as ``infer``.
        """
        cdef Py_ssize_t count = len(self.fields)
        cdef View* views = <View*>calloc(count + 1, sizeof(View))
        cdef Writer writer = Writer(NULL, 0, 0)
        cdef Py_ssize_t k
        if views == NULL:
            raise MemoryError
        try:
            put_opening(self, &writer, request, b',"predictions":[')
            for k in range(count):
                open_field(self, &views[k], self.fields[k], outputs, start, rows)
            put_predictions(self, &writer, views, rows if self.signature.batched else 1)
            put(&writer, b"]}")
            return PyBytes_FromStringAndSize(writer.data, writer.size), -1
        finally:
            writer_free(&writer)
            for k in range(count):
                close_view(&views[k])
            free(views)


@cython.final
cdef class Field:
    """One member of a prediction."""

    cdef bytes key              # with its colon, and the comma before it
    cdef int output
    cdef bint scalar            # a row holds one value
    cdef tuple classes          # keys of the probabilities, with their colons and the commas before them


cdef list record_fields(Signature signature, task):
    """The members of a prediction: the task's, or one an output."""
    if task is None:
        return [record_field(signature, tensor.name, tensor.name, k, ()) for k, tensor in enumerate(signature.outputs)]
    if task.kind == "regressor":
        return [record_field(signature, "value", task.value, 0, ())]
    if task.kind != "classifier":
        raise ConfigurationError(f"task kind {task.kind!r}: it is 'classifier' or 'regressor'")
    fields = [record_field(signature, "label", task.label, 0, ())]
    if task.probabilities is not None:
        keys = [f'{"," if k else ""}{quote(text)}:'.encode() for k, text in enumerate(task.classes)]
        fields.append(record_field(signature, "probabilities", task.probabilities, 1, tuple(keys)))
    return fields


cdef Field record_field(Signature signature, str key, name, Py_ssize_t position, tuple classes):
    cdef Field field = Field.__new__(Field)
    declared = [tensor.name for tensor in signature.outputs]
    if name not in declared:
        raise ConfigurationError(f"the task's {key} output {name!r} is not among the model's outputs {declared}")
    field.output = declared.index(name)
    shape = signature.outputs[field.output].shape[1 if signature.batched else 0:]
    field.scalar = (shape == () or shape == (1,)) and not classes
    field.key = f'{"," if position else ""}{quote(key)}:'.encode()
    field.classes = classes
    return field


# ---- outputs and predictions ---------------------------------------------------------------------------------------
cdef bint put_output(Encoder self, Writer* writer, View* view, Wanted wanted, list outputs, Py_ssize_t start,
                     Py_ssize_t rows) except False:
    cdef bint batched = self.signature.batched
    cdef bint ok = True
    cdef int axis
    name = self.signature.outputs[wanted.output].name
    open_view(view, outputs[wanted.output], &self.signature.output_info[wanted.output], batched, start, rows)
    if view.datatype == DT_BYTES:
        prepare_texts(view, name, wanted.binary)
    put(writer, self.heads[wanted.output])
    for axis in range(view.rank):
        put_integer(writer, rows if batched and axis == 0 else view.shape[axis], axis > 0)
    if wanted.binary:
        put(writer, b'],"parameters":{"binary_data_size":')
        put_integer(writer, view_size(view), False)
        put(writer, b"}}")
        return True
    if view.datatype == DT_FP16 or view.datatype == DT_BF16:
        raise InvalidOutputError(f"output '{name}': JSON does not carry {DATATYPES[<int>view.datatype]}; ask for "
                                 f"it with the parameter 'binary_data': true")
    put(writer, b'],"data":[')
    if view.count < RELEASE:
        ok = put_elements(writer, view, 0, view.count)
    else:
        with nogil:
            ok = put_elements(writer, view, 0, view.count)
    if not ok:
        raise MemoryError
    return put(writer, b"]}")


cdef bint open_field(Encoder self, View* view, Field field, list outputs, Py_ssize_t start,
                     Py_ssize_t rows) except False:
    open_view(view, outputs[field.output], &self.signature.output_info[field.output], self.signature.batched,
              start, rows)
    name = self.signature.outputs[field.output].name
    if view.datatype == DT_FP16 or view.datatype == DT_BF16:
        raise InvalidOutputError(f"output '{name}': JSON does not carry {DATATYPES[<int>view.datatype]}; ask for "
                                 f"it as a binary tensor")
    if (field.scalar and view.row != 1) or (field.classes and view.row != len(field.classes)):
        raise RuntimeFailedError(f"the model's output '{name}' has {view.row} values a row, "
                                 f"{len(field.classes) or 1} expected")
    if view.datatype == DT_BYTES:
        prepare_texts(view, name, False)
    return True


cdef bint put_predictions(Encoder self, Writer* writer, View* views, Py_ssize_t rows) except False:
    cdef Py_ssize_t row, k, index
    cdef Py_ssize_t count = len(self.fields)
    cdef Field field
    for row in range(rows):
        put(writer, b",{" if row else b"{")
        for k in range(count):
            field = self.fields[k]
            put(writer, field.key)
            index = row * views[k].row
            if field.classes:
                put_classes(writer, &views[k], field.classes, index)
            elif not (put_element(writer, &views[k], index) if field.scalar
                      else put_nested(writer, &views[k], 1 if self.signature.batched else 0, &index)):
                raise MemoryError
        put(writer, b"}")
    return True


# ---- pieces --------------------------------------------------------------------------------------------------------
cdef str quote(str text):
    return json.dumps(text, ensure_ascii=False)


cdef inline bint put(Writer* writer, bytes text) except False:
    if not writer_put(writer, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text)):
        raise MemoryError
    return True


cdef bint put_integer(Writer* writer, int64_t value, bint comma) except False:
    cdef char[NUMBER_SIZE] text
    cdef char* out = <char*>text
    out[0] = c','
    if not writer_put(writer, out, to_text(out + comma, out + NUMBER_SIZE, value) - out):
        raise MemoryError
    return True


cdef bint put_opening(Encoder self, Writer* writer, Request request, bytes member) except False:
    put(writer, self.opening)
    if request.id_text.size:
        put(writer, b',"id":')
        if not writer_put(writer, request.id_text.data, request.id_text.size):
            raise MemoryError
    return put(writer, member)


cdef bint put_classes(Writer* writer, const View* view, tuple keys, Py_ssize_t index) except False:
    cdef Py_ssize_t k
    put(writer, b"{")
    for k in range(len(keys)):
        put(writer, keys[k])
        if not put_element(writer, view, index + k):
            raise MemoryError
    return put(writer, b"}")


cdef size_t view_size(const View* view) noexcept nogil:
    """Bytes of the elements in the binary extension."""
    return view.text.size if view.datatype == DT_BYTES else <size_t>view.count * view.itemsize


cdef object join(Writer* writer, View* views, Request request):
    """The JSON, and behind it the binary outputs in their order; copied once."""
    cdef size_t size = writer.size
    cdef bint binary = False
    cdef bytes body
    cdef char* out
    cdef int k
    for k in range(request.n_wanted):
        if request.wanted[k].binary:
            binary = True
            size += view_size(&views[k])
    body = PyBytes_FromStringAndSize(NULL, size)
    out = PyBytes_AS_STRING(body)
    memcpy(out, writer.data, writer.size)
    out += writer.size
    for k in range(request.n_wanted):
        size = view_size(&views[k])
        if request.wanted[k].binary and size:
            memcpy(out, <const char*>views[k].text.data if views[k].datatype == DT_BYTES else views[k].data, size)
            out += size
    return body, <Py_ssize_t>writer.size if binary else -1


# ---- door for tests ------------------------------------------------------------------------------------------------
def encode(Encoder encoder not None, int kind, bytes body not None, list outputs not None, Py_ssize_t start=0,
           Py_ssize_t rows=-1, Py_ssize_t header_length=-1):
    """Answer the request ``body`` with rows ``start`` to ``start + rows`` of ``outputs`` (all rows by default).

    Returns:
        (body, length of its JSON where binary tensors follow, else -1).

    Raises:
        InvalidRequestError: the request, or an output that its answer cannot carry.
        RuntimeFailedError: an array that is not as the signature declares.
    """
    cdef Request request = Request(encoder.signature)
    cdef Failure failure
    if not request.scan(kind, <const char*>body, len(body), header_length, &failure):
        raise request.error(&failure)
    rows = len(outputs[0]) - start if rows < 0 and encoder.signature.batched else rows
    if kind == KIND_RECORDS:
        return encoder.records(request, outputs, start, rows)
    return encoder.infer(request, outputs, start, rows)
