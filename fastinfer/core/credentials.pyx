# Who asks: what a request's credentials are worth, without Python's part of the server.
cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t

cdef enum:
    ANONYMOUS = 0
    ASK = -1                # the standard lane, which can say 401


@cython.final
cdef class Credentials:
    """Identities by the SHA-256 of a raw Authorization or X-API-Key value; no secret is kept.

    Empty, it is off: every request is anonymous, and neither field is looked at.
    """

    def __init__(self):
        self.identities = {}

    def set(self, entries):
        """Know these and no others from now on.

        Args:
            entries: positive identities by digest, 32 bytes each.

        Raises:
            ValueError: a digest or an identity that is none.
        """
        cdef dict identities = dict(entries)
        for digest, identity in identities.items():
            if not isinstance(digest, bytes) or len(digest) != 32 or not isinstance(identity, int) or identity < 1:
                raise ValueError("entries are positive identities by SHA-256 digest")
        if identities and self.sha256 is None:
            from hashlib import sha256
            self.sha256 = sha256
        self.identities = identities

    cdef int64_t identify(self, const Head* head) except -2:
        """The identity of a request, ANONYMOUS where nobody needs one, or ASK."""
        if not self.identities:
            return ANONYMOUS
        if head.credentials != 1:  # none, or several that may contradict each other
            return ASK
        value = PyBytes_FromStringAndSize(head.credential, head.credential_size)
        return self.identities.get(self.sha256(value).digest(), ASK)
