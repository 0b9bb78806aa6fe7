# Characters as this interpreter sees them: what `re`, `str.lower`, `str.split` and `unicodedata` say of each, so that
# text is cut here exactly where Python cuts it, whatever version of Unicode it was built with.
#
# Beyond ASCII the answers lie in pages of 256 characters. A page is asked of the interpreter when it is first met, with
# the GIL, and kept for good; from then on it is read without. There are at most 4,352 pages of about 4 KiB.
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

import unicodedata

cdef extern from *:
    """
    template <typename T> static inline T* load_acquire(T** place) { return __atomic_load_n(place, __ATOMIC_ACQUIRE); }
    template <typename T> static inline void store_release(T** place, T* value) {
        __atomic_store_n(place, value, __ATOMIC_RELEASE);
    }
    """
    CharacterPage* load_acquire(CharacterPage** place) noexcept nogil
    void store_release(CharacterPage** place, CharacterPage* value) noexcept nogil

cdef enum:
    IS_WORD = 1         # \w of `re`
    IS_SPACE = 2        # \s, and where str.split() cuts
    IS_DECIMAL = 4      # \d
    IS_CASED = 8        # Unicode's Cased and not Case_Ignorable: they decide which small sigma a capital one becomes
    IS_IGNORABLE = 16

cdef enum:
    TO_LOWER, STRIP_UNICODE, STRIP_ASCII, CHARACTER_MAPS

cdef enum:
    CAPITAL_SIGMA = 0x3A3
    PAGES = 0x1100

cdef struct CharacterPage:
    uint8_t flags[256]
    uint32_t* places[3]     # of each map: offset << 8 | bytes of what a character becomes; NULL: all stay as they are
    char* pool              # UTF-8

# Characters that one item of a token pattern takes.
cdef struct CharacterClass:
    uint8_t within          # flags of which one suffices
    uint8_t without         # flags of which one must be absent to suffice
    bint negated
    int32_t n_ranges
    const uint32_t* ranges  # pairs of first and last

cdef CharacterPage* character_pages[PAGES]
cdef CharacterPage* blank_page = NULL   # shared by all pages without an assigned character


cdef inline bint only_ascii(const char* text, size_t size) noexcept nogil:
    cdef const char* end = text + size
    cdef uint64_t eight
    while end - text >= 8:
        memcpy(&eight, text, 8)
        if eight & <uint64_t>0x8080808080808080:
            return False
        text += 8
    while text < end:
        if <uint8_t>text[0] & 0x80:
            return False
        text += 1
    return True


cdef inline const char* read_character(const char* p, const char* end, uint32_t* code) noexcept nogil:
    """The character at ``p < end``, and past it. The text is valid UTF-8: decoders and Python see to that."""
    cdef uint32_t first = <uint8_t>p[0]
    if first < 0x80:
        code[0] = first
        return p + 1
    if first < 0xE0:
        code[0] = (first & 0x1F) << 6 | (<uint8_t>p[1] & 0x3F) if end - p > 1 else 0xFFFD
        return min(p + 2, end)
    if first < 0xF0:
        code[0] = ((first & 0x0F) << 12 | (<uint32_t><uint8_t>p[1] & 0x3F) << 6 | (<uint8_t>p[2] & 0x3F)
                   if end - p > 2 else 0xFFFD)
        return min(p + 3, end)
    code[0] = ((first & 0x07) << 18 | (<uint32_t><uint8_t>p[1] & 0x3F) << 12 | (<uint32_t><uint8_t>p[2] & 0x3F) << 6
               | (<uint8_t>p[3] & 0x3F) if end - p > 3 else 0xFFFD)
    return min(p + 4, end)


cdef inline const CharacterPage* page_of(uint32_t code) noexcept nogil:
    """The page of a character that `know_characters` has met."""
    return load_acquire(&character_pages[code >> 8])


cdef inline uint8_t flags_of(uint32_t code) noexcept nogil:
    return page_of(code).flags[code & 0xFF]


cdef bint know_characters(const char* text, size_t size) noexcept nogil:
    """Make the pages of all characters of a text; False when there is no memory."""
    cdef const char* end = text + size
    cdef uint32_t code
    while text < end:
        text = read_character(text, end, &code)
        if code >= PAGES << 8:
            return False
        if load_acquire(&character_pages[code >> 8]) == NULL:
            with gil:
                if not make_page(code >> 8):
                    return False
    return True


cdef bint make_page(uint32_t number) noexcept:
    """Ask the interpreter about 256 characters; False when there is no memory."""
    cdef CharacterPage* page = NULL
    cdef int i
    try:
        described = described_page(number)
        if described is None:
            return share_blank_page(number)
        flags, maps = described
        page = <CharacterPage*>calloc(1, sizeof(CharacterPage))
        if page == NULL:
            return False
        for i in range(256):
            page.flags[i] = flags[i]
        if not fill_maps(page, maps):
            free_page(page)
            return False
    except Exception:
        free_page(page)
        return False
    if load_acquire(&character_pages[number]) == NULL:  # another thread may have been here while this one waited
        store_release(&character_pages[number], page)
    else:
        free_page(page)
    return True


cdef bint share_blank_page(uint32_t number) except -1:
    global blank_page
    if blank_page == NULL:
        blank_page = <CharacterPage*>calloc(1, sizeof(CharacterPage))
        if blank_page == NULL:
            return False
        if not fill_maps(blank_page, [None, None, [b""] * 256]):  # only ASCII is left of it
            return False
    store_release(&character_pages[number], blank_page)
    return True


cdef void free_page(CharacterPage* page) noexcept:
    cdef int which
    if page != NULL:
        for which in range(CHARACTER_MAPS):
            free(page.places[which])
        free(page.pool)
        free(page)


cdef bint fill_maps(CharacterPage* page, list maps) except -1:
    """Lay what the characters become one behind another in the page's pool."""
    cdef bytes pool = b"".join([text for texts in maps if texts is not None for text in texts])
    cdef const char* data = pool
    cdef uint32_t offset = 0, size
    cdef int which, i
    page.pool = <char*>malloc(len(pool) + 1)
    if page.pool == NULL:
        return False
    memcpy(page.pool, data, len(pool))
    for which in range(CHARACTER_MAPS):
        texts = maps[which]
        if texts is None:
            continue
        page.places[which] = <uint32_t*>malloc(256 * sizeof(uint32_t))
        if page.places[which] == NULL:
            return False
        for i in range(256):
            size = <uint32_t>len(texts[i])
            page.places[which][i] = offset << 8 | size
            offset += size
    return True


def described_page(number):
    """What this interpreter says of the characters ``256 * number`` to ``256 * number + 255``.

    Returns:
        (flags of each character, [what each becomes in UTF-8 under str.lower() and scikit-learn's two strip_accents]),
        None for a map that changes none of them; None for a page of the higher planes without an assigned character.
    """
    characters = [chr(code) for code in range(number << 8, (number << 8) + 256)]
    if number >= 0x300 and number >> 8 != 0xE and not any([character.isprintable() for character in characters]):
        return None  # plane 14 holds format characters, which are not printable either
    if 0xD8 <= number <= 0xDF:  # surrogates stand in no valid text
        return [0] * 256, [None] * 3
    # All at once, between characters that nothing here changes or looks across.
    bar = "\n" if number else "\ue000"
    # A capital sigma becomes a final one behind a cased letter, ignorable characters between them aside.
    behind = bar.join([character + "Σ" for character in characters]).lower().split(bar)
    across = bar.join(["a" + character + "Σ" for character in characters]).lower().split(bar)
    flags = []
    for i in range(256):
        cased = behind[i].endswith("ς")
        ignorable = not cased and across[i].endswith("ς")
        flags.append((characters[i].isalnum() or characters[i] == "_") * IS_WORD | characters[i].isspace() * IS_SPACE
                     | characters[i].isdecimal() * IS_DECIMAL | cased * IS_CASED | ignorable * IS_IGNORABLE)
    plain = unicodedata.normalize("NFKD", bar.join(characters))
    maps = [
        bar.join(characters).lower().split(bar),
        "".join([part for part in plain if not unicodedata.combining(part)]).split(bar),
        plain.encode("ascii", "ignore").decode().split(bar),
    ]
    if not number:  # the bar is not ASCII
        maps[STRIP_ASCII] = [character if character.isascii() else unicodedata.normalize("NFKD", character).encode(
            "ascii", "ignore").decode() for character in characters]
    return flags, [None if mapped == characters else [text.encode() for text in mapped] for mapped in maps]


cdef inline bint class_holds(const CharacterClass* kind, uint32_t code, uint8_t flags) noexcept nogil:
    cdef bint found = (flags & kind.within) != 0 or (~flags & kind.without) != 0
    cdef int32_t i
    if not found:
        for i in range(kind.n_ranges):
            if kind.ranges[2 * i] <= code <= kind.ranges[2 * i + 1]:
                found = True
                break
    return found != kind.negated


cdef bint lower_ascii(const char* text, size_t size, Writer* out) noexcept nogil:
    cdef size_t i
    cdef char* to
    out.size = 0
    if not writer_reserve(out, size):
        return False
    to = out.data
    for i in range(size):
        to[i] = text[i] | <char>(0x20 * (c'A' <= text[i] <= c'Z'))
    out.size = size
    return True


cdef bint map_characters(const char* text, size_t size, int which, Writer* out) noexcept nogil:
    """Every character's image under one of the maps; the pages of the text are known. False when there is no memory."""
    cdef const char* p = text
    cdef const char* end = text + size
    cdef const char* after
    cdef const CharacterPage* page
    cdef uint32_t code, place
    cdef bint cased = False     # the last character that is not ignorable is cased
    out.size = 0
    while p < end:
        after = read_character(p, end, &code)
        page = page_of(code)
        if which == TO_LOWER and code == CAPITAL_SIGMA:
            if not writer_put(out, "\xcf\x82" if cased and not before_cased(after, end) else "\xcf\x83", 2):
                return False
        elif page.places[which] == NULL:
            if not writer_put(out, p, after - p):
                return False
        else:
            place = page.places[which][code & 0xFF]
            if place & 0xFF and not writer_put(out, page.pool + (place >> 8), place & 0xFF):
                return False
        if not page.flags[code & 0xFF] & IS_IGNORABLE:
            cased = (page.flags[code & 0xFF] & IS_CASED) != 0
        p = after
    return True


cdef bint before_cased(const char* p, const char* end) noexcept nogil:
    """Whether a cased letter follows, ignorable characters aside."""
    cdef uint32_t code
    cdef uint8_t flags
    while p < end:
        p = read_character(p, end, &code)
        flags = flags_of(code)
        if not flags & IS_IGNORABLE:
            return (flags & IS_CASED) != 0
    return False
