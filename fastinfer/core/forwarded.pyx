# Whom a proxy speaks for: the fields X-Forwarded-For and X-Forwarded-Proto of a peer that is trusted to write them.
#
# Each proxy appends the address that it was asked from, so that the field is read from its end: what stands left of an
# address that is not trusted may be anybody's invention.
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp, memcpy, memset, strlen

cdef extern from "<arpa/inet.h>" nogil:
    enum: AF_INET
    enum: AF_INET6
    int inet_pton(int, const char*, void*)
    const char* inet_ntop(int, const void*, char*, unsigned int)

cdef enum:
    MAX_HOPS = 32               # addresses of a head that are looked at
    MAX_ADDRESS = 64            # characters of one, its zone included
    NO_ADDRESS = -1             # the key of what is none

cdef uint8_t[12] MAPPED = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF]    # what an IPv4 address begins with as IPv6


cdef inline bint is_mapped(const uint8_t* octets) noexcept nogil:
    return memcmp(octets, MAPPED, 12) == 0


cdef bint parse_address(const char* p, Py_ssize_t size, Address* address) noexcept nogil:
    """An IPv4 or IPv6 address as text, a zone behind it passed over; False where it is none."""
    cdef char[MAX_ADDRESS] text
    cdef const char* zone
    if not 0 < size < MAX_ADDRESS or memchr(p, 0, size) != NULL:
        return False
    memset(address, 0, sizeof(Address))
    if memchr(p, c':', size) == NULL:
        memcpy(text, p, size)
        text[size] = 0
        memcpy(address.octets, MAPPED, 12)
        return inet_pton(AF_INET, text, address.octets + 12) == 1
    zone = <const char*>memchr(p, c'%', size)
    if zone != NULL:
        size = zone - p
    memcpy(text, p, size)
    text[size] = 0
    return inet_pton(AF_INET6, text, address.octets) == 1


cdef bint parse_hop(const char* p, Py_ssize_t size, Address* address) noexcept nogil:
    """An element of X-Forwarded-For: an address, alone or with a port, an IPv6 one then in brackets; or "unix:"."""
    cdef const char* end = p + size
    cdef const char* colon = <const char*>memchr(p, c':', size)
    cdef int64_t port = 0
    if size >= 5 and memcmp(p, b"unix:", 5) == 0:
        memset(address, 0, sizeof(Address))
        address.is_unix = True
        return True
    if size and p[0] == c'[':
        p += 1
        colon = <const char*>memchr(p, c']', end - p)
        if colon == NULL or memchr(p, c':', colon - p) == NULL:
            return False
        end = colon
        colon += 1
        if colon - p + 1 < size:  # something follows the bracket
            if colon[0] != c':':
                return False
            port = parse_digits(colon + 1, size - (colon - p) - 2)
            if not 0 <= port <= 65535:
                return False
    elif colon != NULL and memchr(colon + 1, c':', end - colon - 1) == NULL:  # one colon alone
        port = parse_digits(colon + 1, end - colon - 1)
        if not 0 <= port <= 65535:
            return False
        end = colon
    if not parse_address(p, end - p, address):
        return False
    address.port = <int>port
    return True


cdef bytes host_text(const Address* address):
    """The address without its port, in the shortest form (RFC 5952); IPv4 as such."""
    cdef char[MAX_ADDRESS] text
    if is_mapped(address.octets):
        inet_ntop(AF_INET, address.octets + 12, text, MAX_ADDRESS)
    else:
        inet_ntop(AF_INET6, address.octets, text, MAX_ADDRESS)
    return PyBytes_FromStringAndSize(text, strlen(text))


cdef bytes address_text(const Address* address):
    """host:port as protocols/journal.py has it; the host alone where there is no port."""
    host = host_text(address)
    if not address.port:
        return host
    return (b"%s:%d" if is_mapped(address.octets) else b"[%s]:%d") % (host, address.port)


cdef int64_t address_key(const Address* address) except 0:
    """A number below 0 for the host, which clients cannot aim at: Python's hash has a secret."""
    cdef int64_t key = hash(PyBytes_FromStringAndSize(<const char*>address.octets, 16))
    return -(key >> 1) - 1 if key >= 0 else key


@cython.final
cdef class Proxies:
    """The peers that are trusted to say whom they speak for.

    Args:
        peers: addresses, networks ("10.0.0.0/8"), "unix:" for what comes over a Unix socket, "*" for everybody.

    Raises:
        ValueError: one is none of these.
    """

    def __init__(self, peers=()):
        cdef list texts = list(peers)
        cdef Network* network
        cdef Address address
        cdef bytes host
        cdef int bits
        free(self.networks)
        self.n_networks = 0
        self.networks = <Network*>calloc(len(texts) + 1, sizeof(Network))
        if self.networks == NULL:
            raise MemoryError
        for text in texts:
            if text == "*":
                self.every = self.unix = True
                continue
            if text == "unix:":
                self.unix = True
                continue
            head, slash, tail = text.partition("/")
            host = head.encode()
            if not parse_address(PyBytes_AS_STRING(host), PyBytes_GET_SIZE(host), &address):
                raise ValueError(f"{text!r} is no address and no network")
            bits = 128
            if slash:
                if not (tail.isascii() and tail.isdigit() and len(tail) < 4):
                    raise ValueError(f"{text!r} is no network")
                bits = int(tail) + (0 if ":" in head else 96)
                if bits > 128:
                    raise ValueError(f"{text!r} is no network")
            network = &self.networks[self.n_networks]
            memcpy(network.octets, address.octets, 16)
            network.bits = bits
            network.mapped = bits >= 96 and is_mapped(network.octets)
            self.n_networks += 1

    def __dealloc__(self):
        free(self.networks)

    cdef bint trusts_some(self) noexcept nogil:
        """Whether there is any."""
        return self.every or self.unix or self.n_networks > 0

    cdef bint trusts(self, const Address* address) noexcept nogil:
        cdef bint mapped = is_mapped(address.octets)
        cdef const Network* network
        cdef int i, whole, rest
        if address.is_unix or self.every:
            return self.every or self.unix
        for i in range(self.n_networks):
            network = &self.networks[i]
            if network.mapped != mapped:  # no IPv6 network holds IPv4 addresses
                continue
            whole, rest = network.bits // 8, network.bits % 8
            if memcmp(network.octets, address.octets, whole) != 0:
                continue
            if rest == 0 or (network.octets[whole] ^ address.octets[whole]) >> (8 - rest) == 0:
                return True
        return False

    cdef bint find_client(self, const Head* head, Address* client) noexcept nogil:
        """Who asked the trusted proxies: the last address that is not one of theirs, or the first of all.

        What is no address ("unknown", an obfuscated name) hides who asked that proxy, and what stands before it: then
        the proxy itself, the last that is known, is the client. False where no address is told at all.
        """
        cdef const char* begin
        cdef const char* start
        cdef const char* stop
        cdef const char* end
        cdef bint found = False
        cdef Address hop
        cdef int line, hops = 0
        for line in range(head.forwarded_lines - 1, max(head.forwarded_lines - MAX_FORWARDED, 0) - 1, -1):
            begin = head.forwarded[line % MAX_FORWARDED]
            end = begin + head.forwarded_sizes[line % MAX_FORWARDED]
            while end >= begin:
                start = end
                while start > begin and (start - 1)[0] != c',':
                    start -= 1
                stop, end = end, start - 1
                while start < stop and (start[0] == c' ' or start[0] == c'\t'):
                    start += 1
                while stop > start and ((stop - 1)[0] == c' ' or (stop - 1)[0] == c'\t'):
                    stop -= 1
                if start == stop:
                    continue  # an empty element is none (RFC 9110, 5.6.1)
                hops += 1
                if hops > MAX_HOPS or not parse_hop(start, stop - start, &hop):
                    return found
                if not hop.is_unix:
                    client[0] = hop
                    found = True
                if not self.trusts(&hop):
                    return found
        return found

    def client(self, bytes host not None, list lines not None):
        """Who asks through a peer at ``host``, an address, or empty on a Unix socket.

        Args:
            lines: values of X-Forwarded-For that came along, bytes.

        Returns:
            his (address, port) where a trusted peer tells it, else None; and the key of his share.
        """
        cdef Head head
        cdef Address address
        cdef int64_t key = read_peer(host, &address)
        cdef bytes line
        if not lines or key == NO_ADDRESS or not self.trusts(&address):
            return None, key
        lines = lines[-MAX_FORWARDED:]
        head.forwarded_lines = 0
        for line in lines:
            head.forwarded[head.forwarded_lines] = PyBytes_AS_STRING(line)
            head.forwarded_sizes[head.forwarded_lines] = PyBytes_GET_SIZE(line)
            head.forwarded_lines += 1
        if not self.find_client(&head, &address):
            return None, key
        return (host_text(&address).decode(), address.port), address_key(&address)


cdef int64_t read_peer(bytes host, Address* address) except? 0:
    """A peer's address; its key for the fair share, 0 on a Unix socket, NO_ADDRESS where it has none."""
    if not host:
        memset(address, 0, sizeof(Address))
        address.is_unix = True
        return 0
    if not parse_address(PyBytes_AS_STRING(host), PyBytes_GET_SIZE(host), address):
        return NO_ADDRESS
    return address_key(address)


cdef int64_t greet(Connection connection, bytes host) except? 0:
    """Note whether a connection's peer is a trusted proxy; its key for the fair share, 0 on a Unix socket."""
    cdef Address address
    cdef int64_t key = read_peer(host, &address)
    connection.trusted = key != NO_ADDRESS and connection.lane.proxies.trusts(&address)
    return key
