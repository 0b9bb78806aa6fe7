# The sentences: from a Failure to the exception that the client reads.
import json
import math
import re

from fastinfer.errors import (
    FastinferError,
    InvalidBinaryError,
    InvalidInputError,
    InvalidJsonError,
    InvalidMessageError,
    InvalidOutputError,
    InvalidParameterError,
    InvalidRecordError,
    InvalidShapeError,
    InvalidValueError,
)

cdef object parse_json = json.loads

cdef dict JSON_SENTENCES = {
    JSON_END: "the body ends inside a value",
    JSON_EMPTY: "the body is empty",
    JSON_TRAILING: "nothing may follow the JSON value",
    JSON_VALUE: "a JSON value is expected",
    JSON_NUMBER: "not a JSON number",
    JSON_NAN: "NaN and Infinity are not JSON",
    JSON_CONTROL: "a control character in a string must be escaped",
    JSON_ESCAPE: "not a JSON escape",
    JSON_SURROGATE: "a lone surrogate is not a character",
    JSON_UTF8: "not valid UTF-8",
    JSON_ITEM: "',' or ']' is expected",
    JSON_MEMBER: "',' or '}}' is expected",
    JSON_KEY: "a member's name in quotes is expected",
    JSON_COLON: "':' is expected",
    JSON_DEEP: f"arrays and objects may be nested {MAX_DEPTH} deep",
    JSON_DUPLICATE: "the name {quoted} stands twice in one object",
    JSON_CROWDED: f"at most {MAX_KEYS} members may be open at a time",
    JSON_MARK: "a byte order mark is not JSON",
}
cdef dict INPUT_SENTENCES = {
    INPUT_DOCUMENT: "the body must be a JSON object",
    INPUT_LIST: "'inputs' must be an array",
    INPUT_OBJECT: "an input must be an object",
    INPUT_NAMELESS: "an input lacks its 'name'",
    INPUT_NAME: "an input's 'name' must be a string",
    INPUT_UNKNOWN: "unexpected inference input {quoted}{model}; it takes {takes}",
    INPUT_TWICE: "input {name} is given twice",
    INPUT_MISSING: "input {name} is missing{model}; it takes {takes}",
    INPUT_NONE: "the body lacks {member}",
    INPUT_UNTYPED: "input {name} lacks its 'datatype'",
    INPUT_DATATYPE: "'datatype' must be one of {datatypes}",
    INPUT_MISTYPED: "input {name} takes datatype {datatype}, the request has {sent_datatype}",
    INPUT_DATALESS: "input {name} has neither 'data' nor 'binary_data_size'",
    INPUT_DATA: "'data' must be an array",
    INPUT_HALF: "input {name}: JSON does not carry {datatype}; send it as binary data ('binary_data_size')",
    INPUT_ID: "'id' must be a string",
    INPUT_BARE: "input {name} has neither contents nor raw_input_contents",
    INPUT_RAW: "input {name}: {datatype} has no typed contents; send it in raw_input_contents",
    INPUT_CONTENTS: "input {name} of datatype {datatype} has contents of another datatype",
}
cdef dict OUTPUT_SENTENCES = {
    OUTPUT_LIST: "'outputs' must be an array",
    OUTPUT_OBJECT: "a requested output must be an object",
    OUTPUT_NAMELESS: "a requested output lacks its 'name'",
    OUTPUT_NAME: "a requested output's 'name' must be a string",
    OUTPUT_UNKNOWN: "unexpected inference output {quoted}{model}; it gives {gives}",
    OUTPUT_TWICE: "output {name} is requested twice",
    OUTPUT_HALF: "output {name}: JSON does not carry {datatype}; ask for it with the parameter 'binary_data': true",
    OUTPUT_CLASSES: "class result not available for output {name}: its datatype {datatype} has no order",
}
cdef dict PARAMETER_SENTENCES = {
    PARAMETER_OBJECT: "'parameters' must be an object",
    PARAMETER_VALUE: "parameter {quoted} must be a string, a number or a boolean",
    PARAMETER_CROWDED: f"at most {MAX_PARAMETERS} parameters are taken",
    PARAMETER_INTEGER: "parameter {quoted} must be an integer of 64 bits{natural}",
    PARAMETER_BOOL: "parameter {quoted} must be true or false",
    PARAMETER_UNSUPPORTED: "parameter {quoted} is not supported",
    PARAMETER_RESERVED: "parameter {quoted}: names that begin with 'triton_' are reserved",
    PARAMETER_CLASSES: "parameter {quoted} must be an integer above 0",
}
cdef dict SHAPE_SENTENCES = {
    SHAPE_FEW: "input {name}: {data}",
    SHAPE_MANY: "input {name}: {data}",
    SHAPE_NESTING: "input {name}: data must be flat, or nested as shape {sent_shape}",
    SHAPE_ABSENT: "input {name} lacks its 'shape'",
    SHAPE_NEGATIVE: "a dimension must not be negative",
    SHAPE_HUGE: "the shape is larger than any body",
    SHAPE_MISMATCH: "input {name} takes shape {shape}, the request has {sent_shape}",
    SHAPE_ROWS: "input {name} has {sent_rows} rows, input {first_name} has {rows}",
    SHAPE_INTEGER: "'shape' must be an array of integers",
    SHAPE_EMPTY: f"at most {MAX_EMPTY_ROWS} rows may be empty, the request has {{rows}}",
}
cdef dict BINARY_SENTENCES = {
    BINARY_HEADER: "inference header size should be in range (0, {want}), got: {have}",
    BINARY_UNANNOUNCED: "input {name} has 'binary_data_size', but the request lacks Inference-Header-Content-Length",
    BINARY_BOTH: "input {name} has both 'data' and 'binary_data_size'",
    BINARY_SHORT: "unexpected size for input {name}, expecting {want} additional bytes{model}",
    BINARY_SURPLUS: "unexpected additional input data{model}",
    BINARY_SIZE: "unexpected size for input {name}: shape {sent_shape} of {datatype} takes {least}{want} bytes, "
                 "got {have}",
    BINARY_ELEMENT: "input {name}: element {index} runs past the tensor's bytes",
    BINARY_REST: "input {name}: bytes are left behind the last element",
    BINARY_RAW: "a raw binary request needs a model with one input, at most one variable dimension, and one element "
                "where it is BYTES",
    BINARY_MIXED: "contents field must not be specified when using raw_input_contents for {name}{model}",
    BINARY_COUNT: "raw_input_contents has {have} elements for {want} inputs{model}",
    BINARY_RECORDS: "records are JSON only; send them without Inference-Header-Content-Length",
}
cdef dict MESSAGE_SENTENCES = {
    MESSAGE_WIRE: "the message is not a ModelInferRequest: malformed at byte {offset}",
    MESSAGE_UTF8: "the message is not a ModelInferRequest: the string at byte {offset} is not UTF-8",
}
cdef dict RECORD_SENTENCES = {
    RECORD_LIST: "'records' must be an array of objects",
    RECORD_OBJECT: "record {index} is not an object",
    RECORD_UNKNOWN: "record {index} has the unknown field {quoted}{meant}; the model takes {takes}",
    RECORD_ABSENT: "record {index} lacks the field {name}",
    RECORD_SINGLE: "the model takes one record a request, the body has {rows}",
    RECORD_VALUE: "record {index}, field {name}: {value}",
    RECORD_SHAPE: "record {index}, field {name} must be an array of shape {row_shape}",
    RECORD_BOTH: "record {index} has both {name} and features by their names",
    RECORD_NONE: "without a record the model's variable dimensions are not known",
}
cdef dict VALUE_SENTENCES = {
    VALUE_BOOL: "a BOOL byte must be 0 or 1",
    VALUE_NAN: "NaN (a missing value) is not taken here",
    VALUE_UTF8: "not valid UTF-8",
}
cdef dict SENTENCES = {
    <int>BAD_JSON: (InvalidJsonError, JSON_SENTENCES),
    <int>BAD_INPUT: (InvalidInputError, INPUT_SENTENCES),
    <int>BAD_OUTPUT: (InvalidOutputError, OUTPUT_SENTENCES),
    <int>BAD_PARAMETER: (InvalidParameterError, PARAMETER_SENTENCES),
    <int>BAD_SHAPE: (InvalidShapeError, SHAPE_SENTENCES),
    <int>BAD_BINARY: (InvalidBinaryError, BINARY_SENTENCES),
    <int>BAD_RECORD: (InvalidRecordError, RECORD_SENTENCES),
    <int>BAD_MESSAGE: (InvalidMessageError, MESSAGE_SENTENCES),
}
cdef int MAX_COMPARED = 256
cdef int MAX_NAMES = 8  # of inputs or outputs in one message
cdef object TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[^\s,\[\]{}":]+')


cdef object request_error(Request self, Failure* failure):
    """The exception for a failed scan or fill: the sentence, and the place as a JSON path."""
    at = place(self, failure)
    if failure.fault == NO_MEMORY:
        return FastinferError("out of memory")
    if failure.fault == BAD_VALUE:
        name = self.signature.inputs[failure.input].name
        return InvalidValueError(f"input '{name}', {element(self, failure)}: {value_sentence(self, failure)}", at)
    kind, sentences = SENTENCES[<int>failure.fault]
    message = sentences[failure.reason].format(**facts(self, failure))
    if failure.fault == BAD_JSON:
        message = f"invalid JSON at byte {failure.offset}: {message}"
    return kind(message, at)


cdef dict facts(Request self, Failure* failure):
    """What the sentences may name."""
    cdef Signature signature = self.signature
    tensors = signature.outputs if failure.fault == BAD_OUTPUT else signature.inputs
    tensor = tensors[failure.input] if 0 <= failure.input < len(tensors) else None
    known = tensor is not None
    shape = sent_shape(self, failure.input) if known and failure.fault != BAD_OUTPUT else []
    if failure.fault == BAD_RECORD and failure.input >= len(tensors):  # a feature
        tensor = tensors[0]._replace(name=signature.features[failure.input - len(tensors)])
    text = excerpt(self)
    return {
        "quoted": quoted(text),
        "meant": meant(text, [each.name for each in signature.inputs] + list(signature.features))
        if failure.fault == BAD_RECORD else "",
        "name": f"'{tensor.name}'" if tensor is not None else "",
        "model": f" for model '{self.model}'" if self.model else " for this model",
        "takes": record_fields(signature) if failure.fault == BAD_RECORD else names(signature.inputs),
        "gives": names(signature.outputs),
        "member": "'records'" if self.kind == KIND_RECORDS else "'inputs'",
        "datatype": tensor.datatype if known else "",
        "datatypes": ", ".join(DATATYPES),
        "sent_datatype": sent_datatype(self, failure.input) if known and failure.fault != BAD_OUTPUT else "",
        "shape": list(tensor.shape) if known else [],
        "sent_shape": shape,
        "row_shape": shape,
        "sent_rows": shape[0] if shape else 0,
        "first_name": f"'{signature.inputs[0].name}'" if signature.inputs else "",
        "rows": self.rows,
        "index": failure.index,
        "offset": failure.offset,
        "have": self.blame.have,
        "want": self.blame.want,
        "least": "at least " if known and tensor.datatype == "BYTES" else "",
        "natural": "" if text == '"timeout"' else " and not negative",
        "data": length_text(self, failure) if failure.fault == BAD_SHAPE and shape else "",
        "value": value_text(self, tensor) if failure.fault == BAD_RECORD and tensor is not None else "",
    }


cdef str meant(str text, list given):
    """The nearest name of an input, where there is one; not looked for among so many, nor so long ones, that it takes
    long."""
    import difflib  # only on the way to an error

    whole = text.startswith('"') and text.endswith('"') and len(text) < EXCERPT  # not an excerpt of it
    if not whole or len(given) > MAX_COMPARED:
        return ""
    lower = {name.lower(): name for name in given if len(name) <= EXCERPT}
    close = difflib.get_close_matches(text.strip('"').lower(), lower, n=1, cutoff=0.6)
    return f", did you mean '{lower[close[0]]}'?" if close else ""


cdef str names(tuple tensors):
    return listed(tuple([tensor.name for tensor in tensors[:MAX_NAMES]]), len(tensors))


cdef str listed(tuple first, Py_ssize_t count):
    """The first few of so many names."""
    text = ", ".join([f"'{name}'" for name in first])
    return f"{text} and {count - MAX_NAMES} more" if count > MAX_NAMES else text or "none"


cdef str record_fields(Signature signature):
    """What a record may have."""
    if not signature.n_features:
        return names(signature.inputs)
    return f"{names(signature.inputs)}, or {listed(signature.features[:MAX_NAMES], signature.n_features)}"


cdef str quoted(str text):
    """A name as the client wrote it, in our quotes."""
    try:
        return f"'{parse_json(text)}'"
    except ValueError:
        return text


cdef list sent_shape(Request self, Py_ssize_t i):
    return [self.parts[i].shape[axis] for axis in range(max(self.parts[i].rank, 0))]


cdef str sent_datatype(Request self, Py_ssize_t i):
    return DATATYPES[self.parts[i].datatype] if self.parts[i].datatype >= 0 else ""


cdef str excerpt(Request self):
    """The culprit's text, to the end of its token and shortened."""
    if self.kind == KIND_MESSAGE:
        return quote(self.blame.excerpt[:self.blame.excerpt_size].decode("utf-8", "ignore"))
    found = TOKEN.match(self.blame.excerpt[:self.blame.excerpt_size])
    if found and found.end() < EXCERPT:
        return found.group().decode("utf-8", "replace")
    text = self.blame.excerpt[:self.blame.excerpt_size].decode("utf-8", "replace")
    return text[:1] if text[:1] in ("[", "{") else text[:EXCERPT // 2] + "..."


cdef str value_sentence(Request self, Failure* failure):
    if failure.reason in VALUE_SENTENCES:
        return VALUE_SENTENCES[failure.reason]
    return value_text(self, self.signature.inputs[failure.input])


cdef str value_text(Request self, tensor):
    """Why a JSON value, or a message's, is not one of the tensor's."""
    if self.kind == KIND_MESSAGE:
        return f"{self.blame.have} is out of range for {tensor.datatype}"
    text = excerpt(self)
    datatype = tensor.datatype
    if datatype == "BYTES" or datatype == "BOOL":
        return f"{datatype} takes {'a string' if datatype == 'BYTES' else 'true or false'}, got {described(text)}"
    if not (text[:1] == "-" or text[:1].isdigit()):
        return f"{datatype} takes a number, got {described(text)}"
    if datatype[:2] == "FP" or not set(text.removesuffix("...")) & set(".eE"):
        return f"{text} is out of range for {datatype}"
    if tensor.column and self.kind == KIND_RECORDS:
        return f"{datatype} takes whole numbers, got {text}"
    return f"{datatype} takes integers without point or exponent, got {text}"


cdef str length_text(Request self, Failure* failure):
    """What is wrong about the number of values."""
    shape = sent_shape(self, failure.input)
    if self.blame.nested:
        more = "more" if failure.reason == SHAPE_MANY else "fewer"
        return f"{element_path(self, failure)} has {more} elements than shape {shape} takes"
    have = "fewer" if self.blame.have < 0 else self.blame.have
    return f"data has {have} values, shape {shape} takes {math.prod(shape)}"


cdef str described(str text):
    return {"[": "an array", "{": "an object", "null": "null"}.get(text, text)


# ---- places ------------------------------------------------------------------------------------------------------
cdef str place(Request self, Failure* failure):
    """The JSON path of the culprit, or None."""
    cdef Fault fault = failure.fault
    cdef int position
    if fault == BAD_JSON or fault == NO_MEMORY or fault == BAD_MESSAGE:
        return None
    if fault == BAD_RECORD or (self.kind == KIND_RECORDS and fault == BAD_INPUT):
        return record_place(self, failure)
    if fault == BAD_OUTPUT:
        return f"$.outputs[{failure.index}]" if failure.index >= 0 and self.kind != KIND_RECORDS and not self.raw \
            else None
    if fault == BAD_PARAMETER:
        owner = {OF_INPUT: f"inputs[{failure.index}].", OF_OUTPUT: f"outputs[{failure.index}]."}
        return f"$.{owner.get(self.blame.axis, '')}parameters"
    if fault == BAD_INPUT and failure.reason == INPUT_ID:
        return "$.id"
    position = <int>failure.index
    if failure.input >= 0 and fault != BAD_INPUT:
        position = self.parts[failure.input].position
    if position < 0 or self.raw:
        return None
    if fault == BAD_VALUE or (fault == BAD_SHAPE and failure.reason <= SHAPE_NESTING):
        return f"$.inputs[{position}].{element_path(self, failure)}"
    return f"$.inputs[{position}]{'.shape' if fault == BAD_SHAPE else ''}"


cdef str record_place(Request self, Failure* failure):
    if failure.index < 0:
        return "$.records" if failure.fault == BAD_RECORD else None
    if failure.input < 0:
        return f"$.records[{failure.index}]"
    if failure.input >= self.signature.n_inputs:
        return field_place(self.signature.features[failure.input - self.signature.n_inputs], failure.index)
    name = self.signature.inputs[failure.input].name
    return f"{field_place(name, failure.index)}{nested_path(self, failure.input, self.blame.element)}"


cdef str field_place(str name, Py_ssize_t row):
    """Of a record."""
    field = f".{name}" if name.isidentifier() else f"[{json.dumps(name, ensure_ascii=False)}]"
    return f"$.records[{row}]{field}"


cdef tuple column_place(Request self, str name, Failure* failure):
    """Where a tensor has a column's value, in words and as a JSON path; while the request's body is there."""
    cdef Part* part = &self.parts[failure.input]
    cdef const char* p = part.begin + 1
    if self.kind == KIND_MESSAGE:
        return f"input '{name}', element {failure.index}: ", f"$.inputs[{part.position}].contents"
    if part.binary_size >= 0 or self.raw:
        return (f"input '{name}', element {failure.index}: ",
                None if self.raw else f"$.inputs[{part.position}].data")
    while p < part.end and p[0] in (c' ', c'\t', c'\n', c'\r'):
        p += 1
    path = f"data[{failure.index}]" + ("[0]" if p < part.end and p[0] == c'[' else "")
    return f"input '{name}', {path}: ", f"$.inputs[{part.position}].{path}"


cdef str element(Request self, Failure* failure):
    """Which element, in words: binary data have no JSON path."""
    if self.parts[failure.input].binary_size >= 0:
        return f"element {failure.index}"
    return element_path(self, failure)


cdef str element_path(Request self, Failure* failure):
    """data[17], or data[2][3] where the data are nested; the array at fault where its length is."""
    if self.kind == KIND_MESSAGE:
        raw = self.parts[failure.input].binary_size >= 0
        return "contents" if raw or failure.fault != BAD_VALUE else f"contents[{failure.index}]"
    if self.parts[failure.input].binary_size >= 0:
        return "data"
    path = nested_path(self, failure.input, failure.index)
    if failure.fault == BAD_VALUE:
        return "data" + path
    return "data" + "".join(re.findall(r"\[\d+\]", path)[:self.blame.axis] if self.blame.nested else "")


cdef str nested_path(Request self, Py_ssize_t i, Py_ssize_t index):
    """[17], or [2][3] where the data are nested."""
    cdef Part* part = &self.parts[i]
    cdef int axis
    if index < 0:
        return ""
    if not self.blame.nested:
        return f"[{index}]"
    path = ""
    for axis in range(part.rank - 1, -1, -1):
        path = f"[{index % part.shape[axis] if part.shape[axis] else 0}]{path}"
        index //= max(part.shape[axis], 1)
    return path
