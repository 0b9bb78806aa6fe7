from libc.stdint cimport uint8_t

cdef struct Address:
    uint8_t[16] octets                  # IPv4 as ::ffff:a.b.c.d
    int port                            # 0: not told
    bint is_unix                        # none at all: a Unix socket

cdef struct Network:
    uint8_t[16] octets
    int bits
    bint mapped                         # of IPv4 addresses

cdef class Proxies:
    cdef Network* networks
    cdef int n_networks
    cdef bint every, unix
    cdef bint trusts_some(self) noexcept nogil
    cdef bint trusts(self, const Address* address) noexcept nogil
    cdef bint find_client(self, const Head* head, Address* client) noexcept nogil
