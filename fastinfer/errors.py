"""One class a failure. Each has a stable code, an HTTP status and a gRPC status; a place when there is one.

A message names what the client sent or what the operator configured, never an inner detail.
"""

from typing import ClassVar


class FastinferError(Exception):
    """Base of every error that fastinfer raises on purpose.

    Attributes:
        code: stable name, for programs.
        status: HTTP status.
        grpc: name of the gRPC status.
        at: JSON path of the culprit (``$.inputs[0].data[17]``), or None.
        retry_after: seconds after which a retry may succeed, or None.
        detail: what the operator's log says of it, and no client is told, or None.
    """

    code: ClassVar[str] = "internal"
    status: ClassVar[int] = 500
    grpc: ClassVar[str] = "INTERNAL"
    at: str | None
    retry_after: float | None = None
    detail: str | None = None

    def __init__(self, message: str, at: str | None = None) -> None:
        super().__init__(message)
        self.at = at


class InvalidRequestError(FastinferError):
    """The request is at fault; the subclasses say in which way."""

    code = "invalid_request"
    status = 400
    grpc = "INVALID_ARGUMENT"


class InvalidJsonError(InvalidRequestError):
    """Not RFC 8259 JSON, or deeper than the bound; the message names the byte offset."""

    code = "invalid_json"


class InvalidValueError(InvalidRequestError):
    """A value of the wrong type, outside its datatype's range, or not exact in it."""

    code = "invalid_value"


class InvalidShapeError(InvalidRequestError):
    """A shape that the model does not take, that overflows, or that disagrees with the data."""

    code = "invalid_shape"


class InvalidInputError(InvalidRequestError):
    """A missing, unknown or duplicate input or member."""

    code = "invalid_input"


class InvalidOutputError(InvalidRequestError):
    """An unknown or duplicate requested output, or one that JSON cannot carry."""

    code = "invalid_output"


class InvalidBinaryError(InvalidRequestError):
    """Lengths of the binary tensor extension that disagree with the body."""

    code = "invalid_binary"


class InvalidMessageError(InvalidRequestError):
    """Not the protobuf message that the method takes."""

    code = "invalid_message"


class InvalidParameterError(InvalidRequestError):
    """A request parameter of the wrong type, out of range, or unsupported."""

    code = "invalid_parameter"


class InvalidRecordError(InvalidRequestError):
    """A record without a required field, with an unknown one, or with a value its column does not take."""

    code = "invalid_record"


class UnknownCategoryError(InvalidRequestError):
    """A category that the feature program has not seen and is declared to refuse."""

    code = "unknown_category"


class InvalidCompressionError(InvalidRequestError):
    """The body is not what its Content-Encoding says."""

    code = "invalid_compression"


class MalformedHeadError(InvalidRequestError):
    """A request head that is not HTTP/1.1 as RFC 9112 has it; the connection closes."""

    code = "malformed_head"


class UriTooLongError(InvalidRequestError):
    """A request line over the bound; the connection closes."""

    code = "uri_too_long"
    status = 414


class HeadTooLargeError(InvalidRequestError):
    """More or longer header fields than the bounds; the connection closes."""

    code = "head_too_large"
    status = 431


class NotFoundError(FastinferError):
    """No such path."""

    code = "not_found"
    status = 404
    grpc = "NOT_FOUND"


class UnknownModelError(NotFoundError):
    """No model of that name."""

    code = "unknown_model"


class UnknownVersionError(NotFoundError):
    """The model has no such version."""

    code = "unknown_version"


class MethodNotAllowedError(FastinferError):
    """The path exists, the verb does not; ``allow`` lists those that do."""

    code = "method_not_allowed"
    status = 405
    grpc = "UNIMPLEMENTED"

    def __init__(self, allow: str) -> None:
        super().__init__(f"this path takes {allow}")
        self.allow = allow


class BodyTooLargeError(FastinferError):
    """The body is over ``max_body_bytes``, as sent or after decompression."""

    code = "body_too_large"
    status = 413
    grpc = "INVALID_ARGUMENT"


class UnsupportedEncodingError(FastinferError):
    """A Content-Encoding other than identity, gzip and deflate."""

    code = "unsupported_encoding"
    status = 415
    grpc = "INVALID_ARGUMENT"


class RuntimeFailedError(FastinferError):
    """The model's runtime failed on this request."""

    code = "runtime_failed"
    status = 500


class BackendRefusedError(InvalidRequestError):
    """The server that runs the model refuses the request's values."""

    code = "backend_refused"


class BackendError(FastinferError):
    """The server that runs the model failed, or gave what is no answer to this request."""

    code = "backend_failed"
    status = 502
    grpc = "UNAVAILABLE"


class BackendTimeoutError(FastinferError):
    """The server that runs the model did not answer by the request's deadline, or within ``run_timeout_ms``."""

    code = "backend_timeout"
    status = 504
    grpc = "DEADLINE_EXCEEDED"


class UnsupportedError(FastinferError):
    """Part of the protocol that this server does not offer."""

    code = "unsupported"
    status = 501
    grpc = "UNIMPLEMENTED"


class UnavailableError(FastinferError):
    """Refused for now; ``retry_after`` says when to try again."""

    code = "unavailable"
    status = 503
    grpc = "UNAVAILABLE"
    retry_after = 1.0


class OverloadedError(UnavailableError):
    """More is asked of the model than it can do; the subclasses say what that means for this request.

    Attributes:
        reason: stable name, as the answer and the metrics have it.
    """

    code = "overloaded"
    reason: ClassVar[str] = "overloaded"
    message: ClassVar[str] = "the model has more to do than it can"

    def __init__(self, retry_after: float = 1.0) -> None:
        super().__init__(self.message)
        self.retry_after = retry_after


class DeadlineUnreachableError(OverloadedError):
    """Refused at arrival: the answer would most likely come after the request's deadline."""

    code = "deadline_unreachable"
    reason = "deadline"
    message = "the request would most likely not be answered by its deadline"


class QueueFullError(OverloadedError):
    """The model's queue holds as many rows or bytes as it may."""

    code = "queue_full"
    reason = "queue_rows"
    message = "the model's queue holds as many rows as it may"


class QueueBytesFullError(QueueFullError):
    """The model's queue holds as many bytes as it may."""

    reason = "queue_bytes"
    message = "the model's queue holds as many bytes as it may"


class FairShareError(OverloadedError):
    """The client has as much of the model's queue as one client may: half of it."""

    code = "fair_share"
    reason = "fair_share"
    message = "the client has as much of the model's queue as one client may"


class ExpiredError(OverloadedError):
    """The request's deadline passed while it waited; it did not run."""

    code = "expired"
    reason = "expired"
    grpc = "DEADLINE_EXCEEDED"
    message = "the request's deadline passed while it waited"


class NotReadyError(UnavailableError):
    """The model is loading, or could not be loaded."""

    code = "not_ready"


class BackendUnavailableError(UnavailableError):
    """The server that runs the model cannot be reached, or does not have it ready."""

    code = "backend_unavailable"


class LoadFailedError(FastinferError):
    """A model that was to be loaded or unloaded could not be; what it served before, it serves still."""

    code = "load_failed"


class ShuttingDownError(UnavailableError):
    """The server is draining."""

    code = "shutting_down"


class RunTimeoutError(FastinferError):
    """The runtime did not answer within ``run_timeout_ms``."""

    code = "run_timeout"
    status = 504
    grpc = "DEADLINE_EXCEEDED"


class CancelledError(FastinferError):
    """The client left before its rows ran."""

    code = "cancelled"
    status = 499
    grpc = "CANCELLED"


class ConfigurationError(FastinferError):
    """What the operator wrote or named is wrong: a setting, a path, a model.toml. The CLI exits with 2."""

    code = "configuration"


class ModelLoadError(ConfigurationError):
    """A model's files do not load; the message names the file."""

    code = "model_load_failed"


class ImportRefusedError(ConfigurationError):
    """A fitted pipeline cannot become a model that answers exactly as it does; the message names the step."""

    code = "import_refused"
