# Who asks: what a request's credentials are worth, without Python's part of the server.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.string cimport memcmp

cdef enum:
    ANONYMOUS = 0
    ASK = -1                # the standard lane, which can say 401


@cython.final
cdef class Credentials:
    """Identities by the SHA-256 of a raw Authorization or X-API-Key value; the table holds no secret.

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
        self.changes += 1

    cdef int64_t identify(self, const Head* head, Connection connection) except -2:
        """The identity of a request, ANONYMOUS where nobody needs one, or ASK.

        A connection is known again by the value that it showed before: hashing takes longer than the rest of a head.
        The comparison tells nobody anything that is not its own.
        """
        cdef bytes value
        cdef int64_t identity
        if not self.identities:
            return ANONYMOUS
        if head.credentials != 1:  # none, or several that may contradict each other
            return ASK
        value = connection.credential
        if (value is not None and connection.credential_changes == self.changes
                and PyBytes_GET_SIZE(value) == head.credential_size
                and memcmp(PyBytes_AS_STRING(value), head.credential, head.credential_size) == 0):
            return connection.credential_identity
        value = PyBytes_FromStringAndSize(head.credential, head.credential_size)
        identity = self.identities.get(self.sha256(value).digest(), ASK)
        if identity != ASK:
            connection.credential = value
            connection.credential_identity = identity
            connection.credential_changes = self.changes
        return identity
