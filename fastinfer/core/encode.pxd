# A piece of JSON, owned by an Encoder.
cdef struct Piece:
    const char* data
    Py_ssize_t size

# One member of a prediction: an output's value, array, or probabilities by class.
cdef struct Member:
    Piece key                   # with its colon, and the comma before it
    int output
    bint scalar                 # a row holds one value
    Piece* classes              # keys of the probabilities; NULL where there are none
    Py_ssize_t n_classes

# Writes the answers of one model version; used by any thread. Both return (body, JSON length or -1).
cdef class Encoder:
    cdef Signature signature                # wire
    cdef Piece opening                      # {"model_name": ..., "model_version": ...
    cdef Piece* heads                       # an output's object up to its shape
    cdef Piece* openings                    # both, of an answer without an id whose first output it is
    cdef Piece message_opening              # of a ModelInferResponse: the model's name and version
    cdef Piece* tensors                     # of its outputs: name and datatype
    cdef Piece* class_heads                 # of outputs that are classified, which are BYTES
    cdef Piece* class_tensors
    cdef Piece* labels                      # of the classes, where they are known
    cdef Py_ssize_t n_labels
    cdef int label_output                   # whose they are, or -1
    cdef Member* members                    # of a prediction
    cdef Py_ssize_t n_members
    cdef list texts                         # what the pieces point into

    cdef Py_ssize_t write(self, Writer* writer, Request request, Outputs outputs, Py_ssize_t start,
                          Py_ssize_t rows) except -2
    cdef Py_ssize_t write_infer(self, Writer* writer, Request request, Outputs outputs, Py_ssize_t start,
                                Py_ssize_t rows) except -2
    cdef Py_ssize_t write_records(self, Writer* writer, Request request, Outputs outputs, Py_ssize_t start,
                                  Py_ssize_t rows) except -2
    cdef Py_ssize_t write_message(self, Writer* writer, Request request, Outputs outputs, Py_ssize_t start,
                                  Py_ssize_t rows) except -2
