# distutils: language = c++
"""The compiled core: a request's way from bytes to rows, through the feature program and the batch, to an answer.

Parts stand in the order in which a request meets them.
"""

include "core/signature.pyx"
include "core/memory.pyx"
include "core/number.pyx"
include "core/json.pyx"
include "core/tensors.pyx"
include "core/inputs.pyx"
include "core/records.pyx"
include "core/decode.pyx"
include "core/faults.pyx"
include "core/transforms/numeric.pyx"
include "core/transforms/categories.pyx"
include "core/program.pyx"
include "core/outputs.pyx"
include "core/session.pyx"
include "core/render.pyx"
include "core/encode.pyx"
include "core/sketch.pyx"
include "core/batch.pyx"
include "core/infer.pyx"
include "core/head.pyx"
include "core/credentials.pyx"
include "core/http.pyx"
include "core/access.pyx"
