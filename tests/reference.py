"""Plain twins of the compiled core: json and NumPy, one obvious line at a time, never fast."""

import calendar
import datetime
import json
import math
import re
import struct
import unicodedata

import numpy as np

from fastinfer._core import DATATYPES, DTYPES

NUMPY = dict(zip(DATATYPES, DTYPES, strict=True))
ITEMSIZE = {name: 16 if name == "BYTES" else np.dtype(dtype).itemsize for name, dtype in NUMPY.items()}
SIMPLE_FIELD = re.compile(r"-?\d+")


class Refused(ValueError):
    """The body is not one that may be answered."""


class Number(str):
    """A JSON number as it is written."""

    __slots__ = ()


# ---- JSON ------------------------------------------------------------------------------------------------------
def unique(pairs):
    if len(dict(pairs)) != len(pairs):
        raise Refused("duplicate key")
    return dict(pairs)


def no_constant(text):
    raise Refused(text)


def check_tree(value, depth=0):
    """Depth, and that every string is one that UTF-8 can write."""
    if isinstance(value, (list, dict)):
        if depth == 100:
            raise Refused("depth")
        for item in value:
            check_tree(item, depth + 1)
            if isinstance(value, dict):
                check_tree(value[item], depth + 1)
    elif isinstance(value, str):
        value.encode()


def parse_json(text):
    """The value of a JSON text, numbers as Number; Refused when it is not RFC 8259 or over the bounds."""
    try:
        value = json.loads(text.decode(), object_pairs_hook=unique, parse_constant=no_constant, parse_int=Number,
                           parse_float=Number)
        check_tree(value)
    except (ValueError, RecursionError) as error:
        raise Refused(str(error)) from None
    return value


def expect(condition, message=""):
    if not condition:
        raise Refused(message)


def is_text(value):
    return isinstance(value, str) and not isinstance(value, Number)


def whole(value, low, high):
    """A JSON integer within bounds."""
    expect(isinstance(value, Number) and SIMPLE_FIELD.fullmatch(value), "integer")
    expect(len(value) < 25 and low <= int(value) <= high, "range")
    return int(value)


# ---- values ----------------------------------------------------------------------------------------------------
def real(token, dtype):
    value = float(token)
    with np.errstate(over="ignore"):
        value = np.dtype(dtype).type(value)
    expect(np.isfinite(value), "range")
    return value


def element(value, tensor, record=False):
    """One JSON value as the tensor's datatype has it."""
    datatype = tensor.datatype
    if datatype == "BYTES":
        expect(is_text(value) or (value is None and tensor.nullable))
        return value
    if datatype == "BOOL":
        expect(isinstance(value, bool))
        return value
    if datatype in ("FP32", "FP64"):
        if value is None and tensor.nullable:
            return math.nan
        expect(isinstance(value, Number))
        return real(value, NUMPY[datatype])
    expect(datatype not in ("FP16", "BF16") and isinstance(value, Number))
    if record and tensor.column and not SIMPLE_FIELD.fullmatch(value):
        number = float(value)
        expect(abs(number) <= 2**53 and number == int(number))
        return int(number)
    bounds = np.iinfo(NUMPY[datatype])
    return whole(value, bounds.min, bounds.max)


def flatten(value, shape):
    """The scalars of nested lists of exactly this shape."""
    if not shape:
        expect(not isinstance(value, (list, dict)))
        return [value]
    expect(isinstance(value, list) and len(value) == shape[0], "nesting")
    return [scalar for item in value for scalar in flatten(item, shape[1:])]


def array_of(values, tensor, shape, record=False):
    """Flat or nested JSON data as an array."""
    expect(isinstance(values, list))
    if len(shape) > 1 and values and isinstance(values[0], list):
        values = flatten(values, shape)
    else:
        expect(len(values) == math.prod(shape), "count")
        values = flatten(values, [len(values)])
    converted = [element(value, tensor, record) for value in values]
    array = np.empty(len(converted), NUMPY[tensor.datatype])
    array[:] = converted
    return array.reshape(shape)


def texts(blob, count, nullable):
    """Elements of a binary BYTES tensor."""
    values = []
    for _ in range(count):
        expect(len(blob) >= 4)
        (size,) = struct.unpack("<I", blob[:4])
        expect(len(blob) >= 4 + size)
        values.append(text(blob[4:4 + size], nullable))
        blob = blob[4 + size:]
    expect(not blob)
    return values


def text(blob, nullable):
    try:
        return blob.decode() or (None if nullable else "")
    except UnicodeDecodeError:
        raise Refused("UTF-8") from None


def binary_array(blob, tensor, shape):
    count = math.prod(shape)
    if tensor.datatype == "BYTES":
        array = np.empty(count, object)
        array[:] = texts(blob, count, tensor.nullable)
        return array.reshape(shape)
    expect(len(blob) == count * ITEMSIZE[tensor.datatype])
    if tensor.datatype == "BOOL":
        expect(all(byte < 2 for byte in blob))
    array = np.frombuffer(blob, NUMPY[tensor.datatype]).reshape(shape)
    if tensor.column and not tensor.nullable and tensor.datatype == "FP64":
        expect(not np.isnan(array).any())
    return array


# ---- members ---------------------------------------------------------------------------------------------------
def parameters_of(owner):
    parameters = owner.get("parameters", {})
    expect(isinstance(parameters, dict) and len(parameters) <= 64)
    expect(not any(value is None or isinstance(value, (list, dict)) for value in parameters.values()))
    return parameters


def flag(value):
    expect(isinstance(value, bool))
    return value


def request_parameters(document):
    parameters = parameters_of(document)
    for name in parameters:
        expect(not name.startswith("triton_") or name == "triton_enable_empty_final_response")
    return {
        "timeout_us": max(0, whole(parameters.get("timeout", Number("0")), -(2**63) + 1, 2**63 - 1)),
        "priority": whole(parameters.get("priority", Number("0")), 0, 2**64 - 1),
        "binary": flag(parameters.get("binary_data_output", False)),
    }


def no_shared_memory(parameters):
    expect(not any(name.startswith("shared_memory_") and len(name) > 14 for name in parameters))


def wanted_outputs(document, signature, binary):
    wanted = []
    outputs = document.get("outputs", [])
    expect(isinstance(outputs, list))
    declared = [tensor.name for tensor in signature.outputs]
    for output in outputs:
        expect(isinstance(output, dict) and is_text(output.get("name")))
        parameters = parameters_of(output)
        no_shared_memory(parameters)
        classes = whole(parameters.get("classification", Number("0")), 0, 2**63 - 1)
        expect(output["name"] in declared and output["name"] not in dict(wanted))
        datatype = signature.outputs[declared.index(output["name"])].datatype
        expect(not classes or datatype not in ("BOOL", "FP16", "BF16", "BYTES"))
        wanted.append((output["name"], flag(parameters.get("binary_data", binary))))
    wanted = wanted or [(name, binary) for name in declared]
    for name, in_binary in wanted:
        expect(in_binary or signature.outputs[declared.index(name)].datatype not in ("FP16", "BF16"))
    return wanted


def checked_shape(sent, tensor):
    expect(isinstance(sent, list))
    shape = [whole(dim, 0, 2**63 - 1) for dim in sent]
    if not (tensor.column and len(shape) == 1):
        expect(len(shape) == len(tensor.shape))
        expect(all(want in (-1, have) for want, have in zip(tensor.shape, shape, strict=True)))
    expect(math.prod(dim for dim in shape if dim) * ITEMSIZE[tensor.datatype] <= 2**46)
    return shape


def decode_inputs(document, signature, payload, announced):
    expect(isinstance(document.get("inputs"), list))
    declared = {tensor.name: tensor for tensor in signature.inputs}
    arrays = {}
    for sent in document["inputs"]:
        expect(isinstance(sent, dict) and is_text(sent.get("name")))
        expect(sent["name"] in declared and sent["name"] not in arrays)
        tensor = declared[sent["name"]]
        parameters = parameters_of(sent)
        no_shared_memory(parameters)
        expect(sent.get("datatype") == tensor.datatype and not isinstance(sent["datatype"], Number))
        shape = checked_shape(sent.get("shape"), tensor)
        if "binary_data_size" in parameters:
            size = whole(parameters["binary_data_size"], 0, 2**63 - 1)
            expect(announced and "data" not in sent and len(payload) >= size)
            arrays[tensor.name] = binary_array(payload[:size], tensor, shape)
            payload = payload[size:]
        else:
            expect(tensor.datatype not in ("FP16", "BF16"))
            arrays[tensor.name] = array_of(sent.get("data"), tensor, shape)
        if tensor.column:
            arrays[tensor.name] = arrays[tensor.name].reshape(-1, 1)
    expect(not payload and arrays.keys() == declared.keys())
    if signature.batched and arrays:
        expect(len({len(array) for array in arrays.values()}) == 1)
        if not any(array.size for array in arrays.values()):
            expect(len(next(iter(arrays.values()))) <= 4096 or any(
                math.prod(array.shape[1:]) for array in arrays.values()))
    return arrays


def raw_input(signature, payload):
    expect(len(signature.inputs) == 1)
    tensor = signature.inputs[0]
    shape = list(tensor.shape)
    if signature.batched:
        shape[0] = 1
    expect(shape.count(-1) <= 1)
    if tensor.datatype == "BYTES":
        expect(-1 not in shape and math.prod(shape) == 1)
        array = np.empty(1, object)
        array[0] = text(payload, tensor.nullable)
        return {tensor.name: array.reshape(shape)}
    known = math.prod(dim for dim in shape if dim >= 0) * ITEMSIZE[tensor.datatype]
    shape = [len(payload) // known if dim < 0 and known else max(dim, 0) for dim in shape]
    return {tensor.name: binary_array(payload, tensor, shape)}


# ---- records ---------------------------------------------------------------------------------------------------
def nesting(value):
    """Lengths of the first list at each level."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def row_shape(tensor, signature, first):
    """(shape that one record's value has, shape of the row)."""
    declared = list(tensor.shape[1:] if signature.batched else tensor.shape)
    if signature.batched and -1 not in declared:
        return declared, declared
    if tensor.name not in first:
        expect(-1 not in declared)
        return declared, declared
    sent = nesting(first[tensor.name])
    if len(sent) == 1 and len(declared) > 1 and -1 not in declared:
        return declared, declared
    dropped = not signature.batched and len(sent) == len(declared) - 1 and declared[0] in (-1, 1)
    kept = declared[1:] if dropped else declared
    if not sent and kept and -1 not in kept:
        return kept, declared
    expect(len(sent) == len(kept) and all(want in (-1, have) for want, have in zip(kept, sent, strict=True)))
    return sent, [1, *sent] if dropped else sent


def record_value(value, tensor, shape):
    if not isinstance(value, list):
        expect(math.prod(shape) == 1 and len(shape) < 2)
        return [element(value, tensor, record=True)]
    expect(shape and not tensor.column)
    return array_of(value, tensor, shape, record=True).reshape(-1)


def decode_records(document, signature, ignored):
    records = document.get("records")
    expect(isinstance(records, list) and all(isinstance(record, dict) for record in records))
    expect(signature.batched or len(records) == 1)
    expect(not any(tensor.datatype in ("FP16", "BF16") for tensor in signature.inputs))
    expect(records or not any(-1 in tensor.shape[1:] for tensor in signature.inputs))
    names = {tensor.name for tensor in signature.inputs} | set(ignored)
    expect(all(record.keys() <= names for record in records))
    arrays = {}
    for tensor in signature.inputs:
        sent, row = row_shape(tensor, signature, records[0] if records else {})
        values = []
        for record in records:
            expect(tensor.name in record or tensor.nullable)
            if tensor.name in record:
                values.extend(record_value(record[tensor.name], tensor, sent))
            else:
                values.append(None if tensor.datatype == "BYTES" else math.nan)
        array = np.empty(len(values), NUMPY[tensor.datatype])
        array[:] = values
        arrays[tensor.name] = array.reshape([len(records), *row] if signature.batched else row)
    return arrays


# ---- requests --------------------------------------------------------------------------------------------------
def decode(signature, kind, body, header_length=-1, ignored=()):
    """What ``_core.decode`` returns, or Refused. ``ignored``: fields that a record may have for nothing."""
    announced = header_length >= 0
    expect(header_length <= len(body) and not (announced and kind == 1))
    head, payload = (body[:header_length], body[header_length:]) if announced else (body, b"")
    if header_length == 0:
        outputs = [(tensor.name, True) for tensor in signature.outputs]
        return answer(signature, None, raw_input(signature, payload), {"timeout_us": 0, "priority": 0}, outputs, True)
    document = parse_json(head)
    expect(isinstance(document, dict))
    expect("id" not in document or is_text(document["id"]))
    parameters = request_parameters(document)
    if kind == 1:
        arrays = decode_records(document, signature, ignored)
        outputs = [(tensor.name, parameters["binary"]) for tensor in signature.outputs]
    else:
        arrays = decode_inputs(document, signature, payload, announced)
        outputs = wanted_outputs(document, signature, parameters["binary"])
    rows = len(document["records"]) if kind == 1 else None
    return answer(signature, document.get("id"), arrays, parameters, outputs, False, rows)


def answer(signature, identifier, arrays, parameters, outputs, raw, rows=None):
    if rows is None or not signature.batched:
        rows = len(next(iter(arrays.values()))) if signature.batched and arrays else 1
    return {
        "id": identifier,
        "rows": rows,
        "timeout_us": parameters["timeout_us"],
        "priority": parameters["priority"],
        "raw": raw,
        "outputs": outputs,
        "arrays": arrays,
    }


# ---- the feature program: operations over a row of plain floats -------------------------------------------------
def normalized(row, norm):
    size = {"l1": sum(map(abs, row)), "l2": math.sqrt(sum(x * x for x in row)), "max": max(map(abs, row))}[norm]
    return [x / size for x in row] if size >= 10 * np.finfo(float).eps else list(row)


def powered(x, method, power):
    if method == "box-cox":
        return math.log(x) if power == 0 else (x**power - 1) / power
    if x < 0:
        return -powered(1 - x, "box-cox", 2 - power)
    return powered(1 + x, "box-cox", power)


def stood(x, quantiles):
    """Where x stands among the quantiles, from 0 to 1: the middle of what is possible where quantiles repeat."""
    references = np.linspace(0, 1, len(quantiles))
    if x <= quantiles[0] or x >= quantiles[-1]:
        return 0.0 if x <= quantiles[0] else 1.0
    equal = [reference for quantile, reference in zip(quantiles, references, strict=True) if quantile == x]
    if equal:
        return (equal[0] + equal[-1]) / 2
    i = max(i for i, quantile in enumerate(quantiles) if quantile < x)
    part = (x - quantiles[i]) / (quantiles[i + 1] - quantiles[i])
    return references[i] + part * (references[i + 1] - references[i])


def multiplied(row, term):
    return math.prod(row[i] for i in term)


def projected(row, matrix):
    return [sum(weight * x for weight, x in zip(weights, row, strict=True)) for weights in matrix]


def spline_value(x, knots, degree, i):
    """Cox and de Boor's definition of the spline number i, within the base interval."""
    if degree == 0:
        return 1.0 if knots[i] <= x < knots[i + 1] else 0.0
    total = 0.0
    if knots[i + degree] > knots[i]:
        total += (x - knots[i]) / (knots[i + degree] - knots[i]) * spline_value(x, knots, degree - 1, i)
    if knots[i + degree + 1] > knots[i + 1]:
        total += ((knots[i + degree + 1] - x) / (knots[i + degree + 1] - knots[i + 1])
                  * spline_value(x, knots, degree - 1, i + 1))
    return total
# ---- text ------------------------------------------------------------------------------------------------------
def murmur3(data, seed=0):
    """MurmurHash3_x86_32, signed."""
    def scrambled(block):
        block = block * 0xCC9E2D51 & 0xFFFFFFFF
        return ((block << 15 | block >> 17) & 0xFFFFFFFF) * 0x1B873593 & 0xFFFFFFFF

    value = seed
    whole = len(data) & ~3
    for i in range(0, whole, 4):
        value ^= scrambled(int.from_bytes(data[i : i + 4], "little"))
        value = ((value << 13 | value >> 19) & 0xFFFFFFFF) * 5 + 0xE6546B64 & 0xFFFFFFFF
    value ^= scrambled(int.from_bytes(data[whole:], "little")) ^ len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        value = (value ^ value >> shift) * factor & 0xFFFFFFFF
    value ^= value >> 16
    return value - 2**32 if value >= 2**31 else value


def folded(text, step):
    """The text as it is cut: lower case, without accents."""
    text = text.lower() if step["lowercase"] else text
    if step.get("strip_accents") == "unicode" and not text.isascii():
        return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    if step.get("strip_accents") == "ascii":
        return "".join(c for c in unicodedata.normalize("NFKD", text) if c.isascii())
    return text


def grams(parts, step, glue):
    low, high = step["ngrams"]
    return [glue.join(parts[i : i + n]) for n in range(low, high + 1) for i in range(len(parts) - n + 1)]


def terms(text, step):
    """Every n-gram of a text, as a `count` or `hash` step cuts it."""
    text = folded(text, step)
    if step["analyzer"] == "word":
        words = re.findall(step["token_pattern"], text)
        return grams([word for word in words if word not in step.get("stop_words", ())], step, " ")
    if step["analyzer"] == "char":
        return grams(list(re.sub(r"\s{2,}", " ", text)), step, "")
    found = []
    for word in text.split():
        padded = f" {word} "
        found += grams(list(padded), step, "") if len(padded) >= step["ngrams"][0] else [padded]
    return found


def counted(text, step):
    """What a `count` or `hash` step stores: column to sum."""
    found = {}
    for term in terms(text, step):
        if step["op"] == "count":
            column, sign = (step["vocabulary"].index(term), 1) if term in step["vocabulary"] else (-1, 0)
        else:
            value = murmur3(term.encode())
            column, sign = abs(value) % step["features"], -1 if value < 0 and step["alternate_sign"] else 1
        if sign:
            found[column] = found.get(column, 0) + sign
    return {column: 1 if step.get("binary") else found[column] for column in sorted(found)}


# ---- dates and times ---------------------------------------------------------------------------------------------
TIME = re.compile(r"(\d{4})-(\d\d)-(\d\d)(?:[Tt ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d+))?)?([Zz]|[+-]\d\d:\d\d)?)?",
                  re.ASCII)
EPOCH = datetime.datetime(1970, 1, 1)


def instant(written):
    """The moment in UTC that a text names."""
    found = TIME.fullmatch(written)
    expect(found)
    year, month, day, hour, minute, second = [int(group or 0) for group in found.groups()[:6]]
    fraction = int(((found[7] or "") + "000000")[:6])
    try:
        moment = datetime.datetime(year, month, day, hour, minute, second, fraction)
        if found[8] and found[8] not in "Zz":
            hours, minutes = int(found[8][1:3]), int(found[8][4:])
            expect(hours < 24 and minutes < 60)
            offset = datetime.timedelta(hours=hours, minutes=minutes)
            moment += -offset if found[8][0] == "+" else offset
    except (ValueError, OverflowError) as error:
        raise Refused(str(error)) from None
    return moment


def date_part(moment, part):
    after = moment + datetime.timedelta(days=1) if moment.date() < datetime.date.max else None
    first, last = moment.day == 1, after is None or after.month != moment.month
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    return float({
        "quarter": lambda: (moment.month + 2) // 3,
        "week": lambda: moment.isocalendar().week,
        "day_of_year": lambda: moment.timetuple().tm_yday,
        "weekday": moment.weekday,
        "second_of_day": (moment - midnight).total_seconds,
        "days": lambda: (midnight - EPOCH).days,
        "seconds": (moment - EPOCH).total_seconds,
        "days_in_month": lambda: calendar.monthrange(moment.year, moment.month)[1],
        "is_weekend": lambda: moment.weekday() >= 5,
        "is_month_start": lambda: first,
        "is_month_end": lambda: last,
        "is_quarter_start": lambda: first and moment.month in (1, 4, 7, 10),
        "is_quarter_end": lambda: last and moment.month in (3, 6, 9, 12),
        "is_year_start": lambda: first and moment.month == 1,
        "is_year_end": lambda: last and moment.month == 12,
        "is_leap_year": lambda: calendar.isleap(moment.year),
    }.get(part, lambda: getattr(moment, part))())


# ---- categories --------------------------------------------------------------------------------------------------
def bucket(row, buckets):
    """Which of so many buckets values together fall into: a hash of each, from the hash of those before it."""
    found = 0
    for value in row:
        if value is None or value != value:
            blob = b"\xff"
        elif isinstance(value, str):
            blob = value.encode()
        else:
            blob = struct.pack("<q", value) if isinstance(value, int) else struct.pack("<d", value + 0.0)
        found = murmur3(blob, found) & 0xFFFFFFFF
    return found % buckets


# ---- forests ---------------------------------------------------------------------------------------------------
def forest_sums(arrays, rows, *, strict=False, sentinel=math.nan, **_):
    """The sums [rows, outputs] of a Forest's trees, one row and one node at a time."""
    read, add = arrays["threshold"].dtype.type, arrays["leaves"].dtype.type
    left, leaves, kind = arrays["left"], arrays["leaves"], arrays["kind"]
    leaf_of = np.cumsum(left < 0) - 1
    set_of = np.cumsum((left >= 0) & (kind & 48 != 0)) - 1
    tables = {int(f): arrays["tables"][a:b].tolist() for f, a, b in
              zip(arrays["table_features"], arrays["table_starts"], arrays["table_starts"][1:], strict=False)}
    sums = np.tile(arrays["start"], (len(rows), 1))
    for row, total in zip(rows, sums, strict=True):
        for begin, target in zip(arrays["starts"], arrays["target"], strict=False):
            node = begin
            while left[node] >= 0:
                feature, how = int(arrays["feature"][node]), int(kind[node])
                if how & 48:
                    at = set_of[node]
                    words = arrays["sets"][arrays["set_starts"][at]:arrays["set_starts"][at + 1]]
                    right = forest_category(read(row[feature]), how, words, tables.get(feature), sentinel)
                else:
                    right = forest_side(read(row[feature]), how, arrays["threshold"][node], strict, read(sentinel))
                node = begin + (arrays["right"] if right else left)[node]
            values = leaves[leaf_of[node]]
            if len(values) == len(total):
                total += values
            else:
                total[target] = add(total[target] + values[0])
    return sums


def forest_side(value, how, threshold, strict, sentinel):
    """Whether a number goes right."""
    tiny = 1.0000000180025095e-35
    if how & 2 and math.isnan(value):
        value = type(value)(0)
    if (how & 4 and abs(value) <= tiny) or math.isnan(value) or (how & 8 and value == sentinel):
        return bool(how & 128)
    if how & 1 and abs(value) <= tiny:
        value = type(value)(0)
    return not (value < threshold if strict else value <= threshold)


def forest_category(value, how, words, table, sentinel):
    """Whether a category goes right."""
    bit = 1
    if math.isnan(value) or (how & 8 and value == type(value)(sentinel)):
        bit = 0
    elif how & 32:
        bit = 2 + table.index(value) if value in table else 1
    elif (value > -1 if how & 64 else value >= 0) and value < 2147483646:
        bit = 2 + int(value)
    bit = bit if bit < 32 * len(words) else 1
    return bool(int(words[bit // 32]) >> bit % 32 & 1)
