# Trees of few leaves, asked by their features and not by their nodes: what one row, or a few, go through.
#
# As with marks, a tree has a bit for each leaf, from the left, and a value that is greater than a node's has passed the
# leaves to the left of it. Here it is known beforehand what a value passes: the thresholds of all nodes that read a
# feature, in order, cut its values into ranges, and what the nodes of some trees that share a line of cache, a block,
# say of a range is one line of bits. So a row finds its range of each feature once, and of each block takes one line a
# feature; the leaf of each tree is the first that none of them has passed. A category is a range of its own, and so is
# a missing value.
cdef extern from *:
    """
    #include <algorithm>
    #include <array>
    #include <cstdint>
    #include <cstring>
    #include <limits>
    #include <map>
    #include <vector>

    namespace fastinfer {
    constexpr int LINE_BYTES = 64;
    constexpr size_t MOST_PLACES = 1 << 21, MOST_LINES = 1 << 16;   // 4 MiB each: what a second cache holds, or near it
    constexpr size_t MOST_WORK = size_t(1) << 26;                   // of laying categories out

    // A node as it is given here.
    template <typename Key> struct Asked {
        uint32_t group;
        int32_t tree;
        Key key;                        // what is greater passes
        const uint32_t* set;            // or null: bits' number, then bits: which codes pass
        bool missing;                   // passes
        uint64_t passed;                // leaves
    };

    template <typename Key, typename Sum> struct Passes {
        struct alignas(LINE_BYTES) Line { uint64_t words[LINE_BYTES / 8]; };
        struct Group {                  // the nodes that read a feature in one way
            uint32_t way, first_place;
            uint32_t first_key, keys;   // of numbers: where ranges end, ascending; a value that is equal is below
            uint32_t codes;             // of categories, else 0
        };

        std::vector<Group> groups;
        std::vector<Key> keys;
        std::vector<uint16_t> places;   // by range, of each group, and by block: a line
        std::vector<Line> lines;        // the first is nothing
        size_t blocks = 0;
        std::vector<Sum> exits;         // leaves' values, as many for each tree
        std::vector<int32_t> targets;   // of the trees
        int64_t rows = 0;               // as many at most are to come this way
        size_t mask_bytes = 0, tree_exits = 0, leaf_width = 1;

        // Where a value's key stands in its group; the least is a missing one's.
        uint32_t place(size_t g, Key key) const {
            const Group& group = groups[g];
            uint64_t range = static_cast<uint64_t>(key);
            if (group.codes) {
                range = range < group.codes ? range : 1;
            } else {
                const Key* from = keys.data() + group.first_key;
                range = 0;
                for (uint64_t left = group.keys; left > 0;) {   // no branch that could be guessed wrong
                    const uint64_t half = left - left / 2;
                    range += half & -static_cast<uint64_t>(from[range + half - 1] < key);
                    left -= half;
                }
                if (key == std::numeric_limits<Key>::min())
                    range = group.keys + 1;
            }
            return static_cast<uint32_t>(group.first_place + range * blocks);
        }

        // One row through a block's trees: where its values stand, by group.
        template <typename Mask> inline __attribute__((always_inline))
        void add_block(size_t block, const uint32_t* at, Sum* sums, size_t outputs) const {
            typedef uint64_t Vector __attribute__((vector_size(16)));
            constexpr int PARTS = LINE_BYTES / sizeof(Vector), TREES = LINE_BYTES / sizeof(Mask);
            Vector marks[PARTS] = {};
            const uint16_t* place = places.data() + block;
            const Line* line = lines.data();
            for (const uint32_t* end = at + groups.size(); at < end; ++at) {
                const Vector* some = reinterpret_cast<const Vector*>(line[place[*at]].words);
                for (int part = 0; part < PARTS; ++part)
                    marks[part] |= some[part];
            }
            Mask passed[TREES];
            std::memcpy(passed, marks, sizeof passed);
            const size_t first = block * TREES, trees = std::min<size_t>(TREES, targets.size() - first);
            const Sum* exit = exits.data() + first * tree_exits * leaf_width;
            if (leaf_width > 1) {
                for (size_t t = 0; t < trees; ++t, exit += tree_exits * leaf_width) {
                    const Sum* leaf = exit + leaf_of(passed[t]) * leaf_width;
                    for (size_t k = 0; k < leaf_width; ++k)
                        sums[k] += leaf[k];
                }
            } else if (outputs > 1) {
                for (size_t t = 0; t < trees; ++t, exit += tree_exits)
                    sums[targets[first + t]] += exit[leaf_of(passed[t])];
            } else {
                Sum sum = *sums;
                for (size_t t = 0; t < trees; ++t, exit += tree_exits)
                    sum += exit[leaf_of(passed[t])];
                *sums = sum;
            }
        }

        static inline int leaf_of(uint64_t passed) { return __builtin_ctzll(~passed); }     // never passed by all

        template <typename Mask> void add_blocks(const uint32_t* at, int64_t count, Sum* sums, size_t outputs) const {
            for (size_t block = 0; block < blocks; ++block)     // its lines serve every row
                for (int64_t r = 0; r < count; ++r)
                    add_block<Mask>(block, at + r * groups.size(), sums + r * outputs, outputs);
        }

        void add(const uint32_t* at, int64_t count, Sum* sums, size_t outputs) const {
            if (mask_bytes == 1)
                add_blocks<uint8_t>(at, count, sums, outputs);
            else if (mask_bytes == 2)
                add_blocks<uint16_t>(at, count, sums, outputs);
            else if (mask_bytes == 4)
                add_blocks<uint32_t>(at, count, sums, outputs);
            else
                add_blocks<uint64_t>(at, count, sums, outputs);
        }

        // ---- layout -----------------------------------------------------------------------------------------------
        void begin(size_t trees, size_t leaves, size_t width) {
            mask_bytes = leaves <= 8 ? 1 : leaves <= 16 ? 2 : leaves <= 32 ? 4 : 8;
            tree_exits = leaves;
            leaf_width = width;
            targets.resize(trees);
            exits.resize(trees * leaves * width);
        }

        void keep(size_t tree, size_t leaf, const Sum* values) {
            std::copy(values, values + leaf_width, &exits[(tree * tree_exits + leaf) * leaf_width]);
        }

        // The nodes of all trees; false where it would take too much memory.
        bool lay(std::vector<Asked<Key>>& nodes, size_t n_groups) {
            const size_t block_trees = LINE_BYTES / mask_bytes;
            blocks = (targets.size() + block_trees - 1) / block_trees;
            const auto block_of = [&](const Asked<Key>& node) { return node.tree / block_trees; };
            std::sort(nodes.begin(), nodes.end(), [&](const Asked<Key>& a, const Asked<Key>& b) {
                return a.group != b.group ? a.group < b.group
                       : block_of(a) != block_of(b) ? block_of(a) < block_of(b) : a.key < b.key;
            });
            size_t work = 0;
            groups.resize(n_groups);
            lines.assign(1, Line{});
            for (size_t begin = 0, end; begin < nodes.size(); begin = end) {
                Group& group = groups[nodes[begin].group];
                group = {nodes[begin].group, static_cast<uint32_t>(places.size()), static_cast<uint32_t>(keys.size()),
                         0, 0};
                for (end = begin; end < nodes.size() && nodes[end].group == nodes[begin].group; ++end)
                    if (nodes[end].set)
                        group.codes = std::max(group.codes, nodes[end].set[0]);
                    else
                        keys.push_back(nodes[end].key);
                std::sort(keys.begin() + group.first_key, keys.end());
                keys.erase(std::unique(keys.begin() + group.first_key, keys.end()), keys.end());
                group.keys = static_cast<uint32_t>(keys.size() - group.first_key);
                const size_t ranges = group.codes ? group.codes : group.keys + 2;
                work += group.codes * (end - begin);
                if (places.size() + ranges * blocks > MOST_PLACES || work > MOST_WORK)
                    return false;
                places.resize(places.size() + ranges * blocks);
                for (size_t from = begin, to; from < end; from = to) {
                    for (to = from; to < end && block_of(nodes[to]) == block_of(nodes[from]); ++to) {}
                    uint16_t* place = &places[group.first_place + block_of(nodes[from])];
                    if (group.codes)
                        lay_codes(group, place, &nodes[from], to - from);
                    else
                        lay_ranges(group, place, &nodes[from], to - from);
                    if (lines.size() > MOST_LINES)
                        return false;
                }
            }
            // Searches of as many steps follow each other: so the processor guesses their ends.
            std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) {
                return __builtin_clz(a.keys | 1) < __builtin_clz(b.keys | 1);
            });
            return true;
        }

        void pass(Line* line, const Asked<Key>& node) const {
            const size_t bit = node.tree % (LINE_BYTES / mask_bytes) * mask_bytes * 8;
            line->words[bit / 64] |= node.passed << bit % 64;
        }

        // A line for each range of a block's numbers; the last is the missing value's.
        void lay_ranges(const Group& group, uint16_t* place, const Asked<Key>* nodes, size_t count) {
            Line line = {}, missing = {};
            uint16_t at = 0;                    // of more than MOST_LINES, which are not kept, the number is wrong
            size_t next = 0;
            bool any = false;
            for (uint32_t range = 0; range <= group.keys; ++range, place += blocks) {
                const size_t before = next;
                for (; range > 0 && next < count && nodes[next].key == keys[group.first_key + range - 1]; ++next)
                    pass(&line, nodes[next]);
                if (next > before) {
                    at = static_cast<uint16_t>(lines.size());
                    lines.push_back(line);
                }
                *place = at;
            }
            for (size_t i = 0; i < count; ++i)
                if (nodes[i].missing) {
                    pass(&missing, nodes[i]);
                    any = true;
                }
            *place = any ? static_cast<uint16_t>(lines.size()) : 0;
            if (any)
                lines.push_back(missing);
        }

        // A line for each set of nodes that some category passes.
        void lay_codes(const Group& group, uint16_t* place, const Asked<Key>* nodes, size_t count) {
            std::map<std::array<uint64_t, LINE_BYTES / 8>, uint16_t> known;
            for (uint32_t code = 0; code < group.codes; ++code, place += blocks) {
                Line line = {};
                for (size_t i = 0; i < count; ++i) {
                    const uint32_t bit = code < nodes[i].set[0] ? code : 1;     // as an unknown one
                    if (nodes[i].set[1 + (bit >> 5)] >> (bit & 31) & 1)
                        pass(&line, nodes[i]);
                }
                std::array<uint64_t, LINE_BYTES / 8> words;
                std::memcpy(words.data(), line.words, sizeof line.words);
                const auto found = known.emplace(words, static_cast<uint16_t>(lines.size()));
                if (found.second)
                    lines.push_back(line);
                *place = found.first->second;
            }
        }
    };
    }
    """
