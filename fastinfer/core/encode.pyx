# Answers: a model's outputs as Open Inference Protocol JSON, its binary extension, or predictions for records.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport calloc, free

cdef enum:
    RELEASE = 2048              # elements from which rendering lets other threads run
    OUTPUT_ROOM = 64            # bytes of an output's object that are the same for all, between shape and elements


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
        beside: outputs that a prediction has beside the task's.

    Raises:
        ConfigurationError: a task that names an output which the signature lacks.
    """

    def __cinit__(self, str name not None, str version not None, Signature signature not None, task=None,
                  beside=()):
        self.signature = signature
        self.texts = []
        opening = f'{{"model_name":{quote(name)},"model_version":{quote(version)}'
        self.opening = keep(self, opening.encode())
        self.message_opening = keep(self, counted_field(1, name.encode()) + counted_field(2, version.encode()))
        self.heads = <Piece*>calloc(5 * <size_t>signature.n_outputs + 1, sizeof(Piece))
        if self.heads == NULL:
            raise MemoryError
        self.openings = self.heads + signature.n_outputs
        self.tensors = self.openings + signature.n_outputs
        self.class_heads = self.tensors + signature.n_outputs
        self.class_tensors = self.class_heads + signature.n_outputs
        for k, tensor in enumerate(signature.outputs):
            head = f'{{"name":{quote(tensor.name)},"datatype":"{tensor.datatype}","shape":['
            self.heads[k] = keep(self, head.encode())
            self.openings[k] = keep(self, f'{opening},"outputs":[{head}'.encode())
            named = counted_field(1, tensor.name.encode())
            self.tensors[k] = keep(self, named + counted_field(2, tensor.datatype.encode()))
            self.class_heads[k] = keep(self, f'{{"name":{quote(tensor.name)},"datatype":"BYTES","shape":['.encode())
            self.class_tensors[k] = keep(self, named + counted_field(2, b"BYTES"))
        members = task_members(signature, task)
        if task is not None:
            members += [(name, task_output(signature, name, name), ()) for name in beside]
        self.members = <Member*>calloc(len(members) + 1, sizeof(Member))
        if self.members == NULL:
            raise MemoryError
        self.label_output = -1
        for key, output, classes in members:
            compile_member(self, key, output, classes)
            if classes:
                keep_labels(self, output, classes)

    def __dealloc__(self):
        cdef Py_ssize_t k
        for k in range(self.n_members):
            free(self.members[k].classes)
        free(self.members)
        free(self.heads)
        free(self.labels)

    cdef Py_ssize_t write(self, Writer* writer, Request request, Outputs outputs, Py_ssize_t start,
                          Py_ssize_t rows) except -2:
        """Append the answer from rows ``start`` to ``start + rows`` of ``outputs`` (all of it where not batched).

        What was appended before an error is the caller's to take back.

        Returns:
            length of the answer's JSON where binary tensors follow it, else -1.

        Raises:
            InvalidOutputError: an output that JSON cannot carry.
            RuntimeFailedError: an output that has fewer rows, or no value or probability where one is expected.
        """
        if request.kind == KIND_RECORDS:
            return self.write_records(writer, request, outputs, start, rows)
        if request.kind == KIND_MESSAGE:
            return self.write_message(writer, request, outputs, start, rows)
        return self.write_infer(writer, request, outputs, start, rows)

    cdef Py_ssize_t write_infer(self, Writer* writer, Request request, Outputs outputs, Py_ssize_t start,
                                Py_ssize_t rows) except -2:
        cdef size_t begin = writer.size
        cdef View[FEW_VIEWS] few
        cdef View* views = open_views(<View*>few, request.n_wanted)
        cdef int k
        try:
            if request.n_wanted and not request.id_text.size and not request.wanted[0].classes:
                take(put_piece(writer, &self.openings[request.wanted[0].output]))
            else:
                put_opening(self, writer, request, b',"outputs":[')
            for k in range(request.n_wanted):
                if k:
                    put(writer, b",")
                if request.wanted[k].classes:
                    take(put_piece(writer, &self.class_heads[request.wanted[k].output]))
                elif k or request.id_text.size:
                    take(put_piece(writer, &self.heads[request.wanted[k].output]))
                put_output(self, writer, &views[k], request.wanted[k], outputs, start, rows)
            put(writer, b"]}")
            return put_binary(writer, views, request, begin)
        finally:
            close_views(views, request.n_wanted, <View*>few)

    cdef Py_ssize_t write_message(self, Writer* writer, Request request, Outputs outputs, Py_ssize_t start,
                                  Py_ssize_t rows) except -2:
        """A ModelInferResponse: every output's elements in raw_output_contents."""
        cdef View[FEW_VIEWS] few
        cdef View* views = open_views(<View*>few, request.n_wanted)
        cdef const char* data
        cdef const Piece* head
        cdef int k
        try:
            take(put_piece(writer, &self.message_opening))
            if request.id_text.size:
                take(put_counted_field(writer, 3, request.id_text.data, request.id_text.size))
            for k in range(request.n_wanted):
                open_output(self, &views[k], outputs, &request.wanted[k], start, rows)
                head = self.class_tensors if request.wanted[k].classes else self.tensors
                take(put_tensor_field(self, writer, &views[k], &head[request.wanted[k].output], rows))
            for k in range(request.n_wanted):
                data = views[k].text.data if views[k].datatype == DT_BYTES else <char*>views[k].data
                take(put_counted_field(writer, 6, data, view_size(&views[k])))
            return -1
        finally:
            close_views(views, request.n_wanted, <View*>few)

    cdef Py_ssize_t write_records(self, Writer* writer, Request request, Outputs outputs, Py_ssize_t start,
                                  Py_ssize_t rows) except -2:
        """A prediction a row; one for all where the model is not batched."""
        cdef View[FEW_VIEWS] few
        cdef View* views = open_views(<View*>few, self.n_members)
        cdef Py_ssize_t count = rows if self.signature.batched else 1
        cdef Py_ssize_t elements = 0
        cdef Py_ssize_t k
        cdef bint ok
        try:
            put_opening(self, writer, request, b',"predictions":[')
            for k in range(self.n_members):
                open_member(self, &views[k], &self.members[k], outputs, start, rows)
                elements += views[k].count
            if elements < RELEASE:
                ok = put_predictions(self, writer, views, count)
            else:
                with nogil:
                    ok = put_predictions(self, writer, views, count)
            if not ok:
                raise MemoryError
            put(writer, b"]}")
            return -1
        finally:
            close_views(views, self.n_members, <View*>few)


# ---- what a prediction has -----------------------------------------------------------------------------------------
cdef list task_members(Signature signature, task):
    """(key, output, classes) of a prediction's members: the task's, or one an output."""
    if task is None:
        return [(tensor.name, k, ()) for k, tensor in enumerate(signature.outputs)]
    if task.kind == "regressor":
        return [("value", task_output(signature, "value", task.value), ())]
    if task.kind != "classifier":
        raise ConfigurationError(f"task kind {task.kind!r}: it is 'classifier' or 'regressor'")
    members = [("label", task_output(signature, "label", task.label), ())]
    if task.probabilities is not None:
        output = task_output(signature, "probabilities", task.probabilities)
        members.append(("probabilities", output, tuple(task.classes)))
    return members


cdef int task_output(Signature signature, str role, name) except -1:
    declared = [tensor.name for tensor in signature.outputs]
    if name not in declared:
        raise ConfigurationError(f"the task's {role} output {name!r} is not among the model's outputs {declared}")
    return declared.index(name)


cdef bint compile_member(Encoder self, str key, int output, tuple classes) except False:
    cdef Member* member = &self.members[self.n_members]
    cdef Py_ssize_t k
    shape = self.signature.outputs[output].shape[1 if self.signature.batched else 0:]
    member.output = output
    member.key = keep(self, f'{"," if self.n_members else ""}{quote(key)}:'.encode())
    member.scalar = (shape == () or shape == (1,)) and not classes
    if classes:
        member.classes = <Piece*>calloc(len(classes), sizeof(Piece))
        if member.classes == NULL:
            raise MemoryError
        for k, text in enumerate(classes):
            member.classes[k] = keep(self, f'{"," if k else ""}{quote(text)}:'.encode())
        member.n_classes = len(classes)
    self.n_members += 1
    return True


cdef bint keep_labels(Encoder self, int output, tuple classes) except False:
    """What the places of an output are called, for those who ask for its classification."""
    cdef Py_ssize_t k
    self.labels = <Piece*>calloc(len(classes), sizeof(Piece))
    if self.labels == NULL:
        raise MemoryError
    for k, text in enumerate(classes):
        self.labels[k] = keep(self, text.encode())
    self.n_labels = len(classes)
    self.label_output = output
    return True


cdef Piece keep(Encoder self, bytes data):
    cdef Piece piece
    self.texts.append(data)
    piece.data = PyBytes_AS_STRING(data)
    piece.size = PyBytes_GET_SIZE(data)
    return piece


# ---- outputs and predictions ---------------------------------------------------------------------------------------
cdef bint open_output(Encoder self, View* view, Outputs outputs, const Wanted* wanted, Py_ssize_t start,
                      Py_ssize_t rows) except False:
    """Look at an answer's part of one output."""
    cdef int output = wanted.output
    cdef bint binary = wanted.binary
    open_view(view, &outputs.results[output], self.signature.batched, start, rows)
    if wanted.classes:
        classify(view, self.signature.batched, rows, wanted.classes, self.labels,
                 self.n_labels if output == self.label_output else 0, binary)
    elif view.datatype == DT_BYTES:
        prepare_texts(view, self.signature.outputs[output].name, binary)
    elif not binary and (view.datatype == DT_FP16 or view.datatype == DT_BF16):
        raise InvalidOutputError(f"output '{self.signature.outputs[output].name}': JSON does not carry "
                                 f"{DATATYPES[<int>view.datatype]}; ask for it with the parameter 'binary_data': true")
    return True


cdef bint put_output(Encoder self, Writer* writer, View* view, Wanted wanted, Outputs outputs, Py_ssize_t start,
                     Py_ssize_t rows) except False:
    """An output's object from its shape's first number on."""
    cdef bint ok
    cdef int axis
    open_output(self, view, outputs, &wanted, start, rows)
    take(writer_reserve(writer, <size_t>(view.rank + 1) * (NUMBER_SIZE + 1) + OUTPUT_ROOM))
    for axis in range(view.rank):
        append_integer(writer, rows if self.signature.batched and axis == 0 else view.shape[axis], axis > 0)
    if wanted.binary:
        append_literal(writer, b'],"parameters":{"binary_data_size":')
        append_integer(writer, view_size(view), False)
        append_literal(writer, b"}}")
        return True
    append_literal(writer, b'],"data":[')
    if view.count < RELEASE:
        ok = put_elements(writer, view, 0, view.count)
    else:
        with nogil:
            ok = put_elements(writer, view, 0, view.count)
    if not ok:
        raise MemoryError
    return put(writer, b"]}")


cdef bint open_member(Encoder self, View* view, const Member* member, Outputs outputs, Py_ssize_t start,
                      Py_ssize_t rows) except False:
    cdef Py_ssize_t output = member.output
    cdef Wanted wanted = Wanted(member.output, False, False, 0)
    open_output(self, view, outputs, &wanted, start, rows)
    if (member.scalar and view.row != 1) or (member.classes != NULL and view.row != member.n_classes):
        raise RuntimeFailedError(f"the model's output '{self.signature.outputs[output].name}' has {view.row} "
                                 f"values a row, {max(member.n_classes, 1)} expected")
    return True


cdef bint put_predictions(Encoder self, Writer* writer, View* views, Py_ssize_t rows) noexcept nogil:
    cdef Py_ssize_t row, k
    for row in range(rows):
        if not writer_put(writer, b",{", 2) if row else not writer_put(writer, b"{", 1):
            return False
        for k in range(self.n_members):
            if not put_member(writer, &views[k], &self.members[k], row, 1 if self.signature.batched else 0):
                return False
        if not writer_put(writer, b"}", 1):
            return False
    return True


cdef bint put_member(Writer* writer, const View* view, const Member* member, Py_ssize_t row, int axis) noexcept nogil:
    cdef Py_ssize_t index = row * view.row
    cdef Py_ssize_t k
    if not put_piece(writer, &member.key):
        return False
    if member.scalar:
        return put_element(writer, view, index)
    if member.classes == NULL:
        return put_nested(writer, view, axis, &index)
    if not writer_put(writer, b"{", 1):
        return False
    for k in range(member.n_classes):
        if not put_piece(writer, &member.classes[k]) or not put_element(writer, view, index + k):
            return False
    return writer_put(writer, b"}", 1)


cdef inline bint put_piece(Writer* writer, const Piece* piece) noexcept nogil:
    return writer_put(writer, piece.data, piece.size)


# ---- pieces --------------------------------------------------------------------------------------------------------
cdef str quote(str text):
    return json.dumps(text, ensure_ascii=False)


cdef inline bint take(bint done) except False:
    """Raise where there was no memory."""
    if not done:
        raise MemoryError
    return True


cdef inline bint put(Writer* writer, bytes text) except False:
    return take(writer_put(writer, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text)))


cdef bint put_integer(Writer* writer, int64_t value, bint comma) except False:
    take(writer_reserve(writer, NUMBER_SIZE + 1))
    append_integer(writer, value, comma)
    return True


cdef inline void append_integer(Writer* writer, int64_t value, bint comma) noexcept nogil:
    """A number of at most NUMBER_SIZE bytes, and a comma before it, for which there is room."""
    cdef char* out = writer.data + writer.size
    out[0] = c','
    out += comma
    if 0 <= value < 10:
        out[0] = <char>(c'0' + value)
        out += 1
    else:
        out = to_text(out, out + NUMBER_SIZE, value)
    writer.size = out - writer.data


cdef bint put_opening(Encoder self, Writer* writer, Request request, bytes member) except False:
    take(put_piece(writer, &self.opening))
    if request.id_text.size:
        put(writer, b',"id":')
        take(writer_put(writer, request.id_text.data, request.id_text.size))
    return put(writer, member)


cdef size_t view_size(const View* view) noexcept nogil:
    """Bytes of the elements in the binary extension."""
    return view.text.size if view.datatype == DT_BYTES else <size_t>view.count * view.itemsize


cdef Py_ssize_t put_binary(Writer* writer, View* views, Request request, size_t begin) except -2:
    """Append the binary outputs in their order; the length of the JSON before them, or -1 where there are none."""
    cdef size_t json_size = writer.size - begin
    cdef bint binary = False
    cdef const char* data
    cdef size_t size
    cdef int k
    for k in range(request.n_wanted):
        if not request.wanted[k].binary:
            continue
        binary = True
        size = view_size(&views[k])
        data = views[k].text.data if views[k].datatype == DT_BYTES else <char*>views[k].data
        if size and not writer_put(writer, data, size):
            raise MemoryError
    return <Py_ssize_t>json_size if binary else -1


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
    cdef Writer writer = Writer(NULL, 0, 0)
    cdef Py_ssize_t json_size
    cdef Failure failure
    if not request.scan(kind, <const char*>body, len(body), header_length, &failure):
        raise request.error(&failure)
    rows = len(outputs[0]) - start if rows < 0 and encoder.signature.batched else rows
    try:
        json_size = encoder.write(&writer, request, outputs_of(encoder.signature, outputs), start, rows)
        return PyBytes_FromStringAndSize(writer.data, writer.size), json_size
    finally:
        writer_free(&writer)
