# Trees laid out for walking: a batch of rows goes through flat arrays of nodes, and the leaves are added up in the
# order and the type in which the model's own library adds them.
#
# Values become integer keys first, one column for each way in which the model's nodes read a feature: a missing value
# is the least or the greatest key, whichever sends it to its side, and a category is a number of its own. So every node
# asks the same question, whether a key is greater than its own, and a leaf is a node that nothing is greater than, and
# that leads back to itself: several rows walk through a tree in step, without a branch that a processor could guess
# wrong. A node's children stand beside each other, behind it.
#
# A tree of few leaves has a bit for each, from the left. A key that is greater than a node's has passed the leaves to
# the left of it, whether the walk comes by that node or not; so all nodes are asked, eight or more rows at a time, and
# the leaf is the first that nothing has passed. (QuickScorer, Lucchese et al., 2015, without its order by feature.)
from libc.stdint cimport int64_t

cdef extern from *:
    """
    #include <algorithm>
    #include <cmath>
    #include <cstdint>
    #include <cstring>
    #include <limits>
    #include <map>
    #include <memory>
    #include <set>
    #include <vector>

    namespace fastinfer {
    // How a node reads its feature; also in SPLITS, for Python.
    enum Reading : uint32_t {
        READ_FLUSHED = 1,           // what is as small as LightGBM's zero is zero
        READ_NAN_AS_ZERO = 2,
        READ_ZERO_AS_MISSING = 4,
        READ_SENTINEL = 8,          // the model's missing value is missing, as NaN is
        READ_CODE = 16,             // a category: the whole part; it and those below are exclusive
        READ_TABLE = 32,            // a category: the place in the feature's table
        READ_TOWARDS_ZERO = 64,     // the whole part of what lies between -1 and 0 is category 0
        READ_MISSING_RIGHT = 128,
    };
    constexpr double LIGHTGBM_ZERO = 1.0000000180025095e-35;    // (double)1e-35f
    constexpr double CODE_LIMIT = 2147483646.0;
    constexpr int64_t MISSING_CODE = 0, UNKNOWN_CODE = 1, FIRST_CODE = 2;
    constexpr int LANES = 8;                                    // walks in step
    constexpr int FEW_ROWS = 2;                                 // go alone, each through several trees in step
    constexpr int GROUP_BYTES = 64;                             // of the keys of one column, side by side

    enum Link : int {
        IDENTITY, SIGMOID, SOFTMAX, EXPONENTIAL, ROUNDED_EXPONENTIAL, SIGNED_SQUARE, SOFTPLUS, STEP
    };
    enum Rule : int { MOST_PROBABLE, HIGHEST, ABOVE_ZERO, FROM_ZERO, ABOVE_HALF };

    struct Reader {                 // makes one column of keys
        int32_t feature;
        uint32_t how;
        int64_t table, table_size;
    };

    template <typename Key> struct Node {
        Key key;                    // of a split on categories: where its set begins
        int32_t left;               // the right child is the next one; a leaf's is itself
        int32_t column;             // where its keys begin in a group's; ~ of a split on categories
    };

    // A node of a tree that has a bit for each leaf, from the left, and the leaves that are passed to the right of it.
    template <typename Key> struct Split {
        Key key, passed;
        int32_t column;
    };

    struct Tree {
        size_t first;
        int32_t even, depth;        // levels down to the first leaf, and to the last
        int32_t target;
        bool categorical;
        bool marked;                // it has Splits
        int32_t n_splits;
        size_t first_split, first_exit;
    };

    // As Python gives a forest; the lengths agree, and nothing else is known of it.
    struct Natural {
        int64_t trees, columns, outputs, leaf_width, leaves, sets;
        const int64_t* starts;      // trees + 1
        const int32_t *left, *right, *column, *target;
        const uint8_t* categorical;
        const void *thresholds, *values;
        const Reader* readers;      // columns
        const int64_t* set_starts;  // sets + 1
        const uint32_t* set_words;
        bool strict;                // a value equal to the threshold goes right
    };

    inline int64_t key_of(double value) {
        int64_t bits;
        value += 0.0;               // one zero
        std::memcpy(&bits, &value, sizeof bits);
        return bits ^ ((bits >> 63) & std::numeric_limits<int64_t>::max());
    }
    inline int32_t key_of(float value) {
        int32_t bits;
        value += 0.0f;
        std::memcpy(&bits, &value, sizeof bits);
        return bits ^ ((bits >> 31) & std::numeric_limits<int32_t>::max());
    }

    // The marks of a tree are made once more for wide vectors: x86-64 without them has no comparison of 64 bits, which
    // makes three times of it. Integers are compared, so the answers are the same.
    inline bool narrow = false;                                 // for tests: as a processor without wide vectors
    inline bool prefer_passes = false;                          // for tests: whatever it costs
    #if defined(__x86_64__)
    #define FASTINFER_WIDE __attribute__((target("avx2,bmi")))
    inline bool has_wide_vectors() {
        return !narrow && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi");
    }
    #else
    #define FASTINFER_WIDE
    inline bool has_wide_vectors() { return false; }
    #endif

    enum Flaw : int { SOUND, NOT_A_TREE, NO_SUCH_COLUMN, NO_SUCH_TARGET, NO_SUCH_SET, NOT_A_NUMBER, EMPTY_TREE };

    struct Ensemble {
        virtual ~Ensemble() {}
        virtual void add(const void* rows, size_t width, int64_t count, const Reader* readers, const double* tables,
                         double sentinel, void* keys, void* sums) const = 0;
        int64_t columns = 0, outputs = 0;
        size_t key_size = 0, sum_size = 0, nodes_held = 0;
        bool wide = has_wide_vectors();
    };

    template <typename Value, typename Key, typename Sum> struct Grove : Ensemble {
        std::vector<Tree> trees;
        std::vector<Node<Key>> nodes;
        static constexpr int GROUP = GROUP_BYTES / sizeof(Key);    // rows whose keys stand side by side
        std::vector<Split<Key>> splits;
        std::vector<Sum> values;            // of the nodes, or where a leaf has several, of the leaves
        std::vector<int64_t> leaf_of;       // of the nodes, where a leaf has several: its first value
        std::vector<Sum> exits;             // of the trees that are marked: their leaves' values, from the left
        std::vector<uint32_t> sets;         // each its bits' number, then its bits: which codes go right
        int64_t leaf_width = 1;
        Passes<Key, Sum> passes;            // where all trees have few leaves, and it pays
        std::vector<Reader> ways;           // how each of its groups reads its feature

        Flaw plant(const Natural& given, int64_t* place) {
            columns = given.columns;
            outputs = given.outputs;
            leaf_width = given.leaf_width;
            key_size = sizeof(Key);
            sum_size = sizeof(Sum);
            std::vector<Key> set_at(given.sets);
            for (int64_t s = 0; s < given.sets; ++s) {
                const int64_t words = given.set_starts[s + 1] - given.set_starts[s];
                set_at[s] = static_cast<Key>(sets.size());
                sets.push_back(static_cast<uint32_t>(words * 32));
                sets.insert(sets.end(), given.set_words + given.set_starts[s],
                            given.set_words + given.set_starts[s + 1]);
            }
            int64_t leaf = 0, set = 0;
            for (int64_t t = 0; t < given.trees; ++t) {
                *place = t;
                const Flaw flaw = add_tree(given, t, set_at, &leaf, &set);
                if (flaw != SOUND)
                    return flaw;
            }
            nodes_held = nodes.size();
            lay_passes(given.readers);
            return SOUND;
        }

        size_t tree_size(size_t t) const {
            return (t + 1 < trees.size() ? trees[t + 1].first : nodes.size()) - trees[t].first;
        }

        // By column, which of `ways` its nodes' keys are read in. A missing value has a range of its own; and a
        // threshold far from zero does not tell zero from what is as small, so it may be read as those that do.
        std::vector<uint32_t> group_columns(const Reader* readers) {
            std::vector<bool> near(columns), used(columns);
            for (size_t t = 0; t < trees.size(); ++t)
                for (size_t i = 0; i < tree_size(t); ++i) {
                    const Node<Key>& node = nodes[trees[t].first + i];
                    if (node.left == static_cast<int32_t>(i))
                        continue;
                    const int64_t column = (node.column < 0 ? ~node.column : node.column) / GROUP;
                    used[column] = true;
                    near[column] = near[column] || (node.column >= 0 &&
                        node.key >= key_of(static_cast<Value>(-LIGHTGBM_ZERO)) &&
                        node.key < key_of(static_cast<Value>(LIGHTGBM_ZERO)));
                }
            std::map<std::pair<int32_t, uint32_t>, uint32_t> known;
            std::set<int32_t> flushed;
            for (int64_t c = 0; c < columns; ++c)
                if (used[c] && (readers[c].how & READ_FLUSHED))
                    flushed.insert(readers[c].feature);
            std::vector<uint32_t> group(columns);
            for (int64_t c = 0; c < columns; ++c) {
                if (!used[c])
                    continue;
                Reader way = readers[c];
                if (!(way.how & (READ_CODE | READ_TABLE)) && !near[c] && flushed.count(way.feature))
                    way.how |= READ_FLUSHED;
                way.how &= ~READ_MISSING_RIGHT;
                const auto found = known.emplace(std::pair(way.feature, way.how), static_cast<uint32_t>(ways.size()));
                if (found.second)
                    ways.push_back(way);
                group[c] = found.first->second;
            }
            return group;
        }

        void lay_passes(const Reader* readers) {
            size_t most = 1;
            for (size_t t = 0; t < trees.size(); ++t)
                most = std::max(most, (tree_size(t) + 1) / 2);
            if (most > 64 || trees.empty())
                return;
            const std::vector<uint32_t> group = group_columns(readers);
            std::vector<Asked<Key>> asked;
            passes.begin(trees.size(), most, leaf_width);
            for (size_t t = 0; t < trees.size(); ++t) {
                const size_t size = tree_size(t);
                const std::vector<Leaves> spans = leaf_spans(trees[t], size);
                for (size_t i = 0; i < size; ++i) {
                    const size_t at = trees[t].first + i;
                    const Node<Key>& node = nodes[at];
                    if (node.left == static_cast<int32_t>(i)) {
                        passes.keep(t, spans[i].begin, leaf_values(at));
                        continue;
                    }
                    const int64_t column = (node.column < 0 ? ~node.column : node.column) / GROUP;
                    asked.push_back({group[column], static_cast<int32_t>(t), node.column < 0 ? 0 : node.key,
                                     node.column < 0 ? &sets[static_cast<size_t>(node.key)] : nullptr,
                                     (readers[column].how & READ_MISSING_RIGHT) != 0, spans[node.left].bits()});
                }
                passes.targets[t] = trees[t].target;
            }
            const bool laid = passes.lay(asked, ways.size());
            const int64_t rows = laid ? passed_rows(asked.size()) : 0;
            if (rows == 0) {
                passes = {};
                ways.clear();
            }
            passes.rows = rows;
        }

        // How many rows go faster through passes than in another way, in ns as they were measured (bench/NOTES.md).
        int64_t passed_rows(size_t splits) const {
            if (prefer_passes)
                return std::numeric_limits<int64_t>::max();
            const double one = passes.blocks * ways.size() * 1.2 + ways.size() * 14.0 + trees.size();
            double levels = 0;
            bool marked = true;
            for (const Tree& tree : trees) {
                levels += tree.depth;
                marked = marked && tree.marked;
            }
            if (one > levels)
                return 0;                                       // rows one by one are better walked
            if (!marked)
                return std::numeric_limits<int64_t>::max();
            const double group = splits + 8.0 * trees.size();   // of rows that are marked together
            return std::clamp<int64_t>(static_cast<int64_t>(group / one), FEW_ROWS, GROUP);
        }

        Flaw add_tree(const Natural& given, int64_t t, const std::vector<Key>& set_at, int64_t* leaf, int64_t* set) {
            const int64_t begin = given.starts[t], size = given.starts[t + 1] - begin;
            if (size < 1)
                return EMPTY_TREE;
            if (leaf_width == 1 && (given.target[t] < 0 || given.target[t] >= outputs))
                return NO_SUCH_TARGET;
            std::vector<int64_t> number(size);          // of a leaf among the leaves, of a set among the sets
            for (int64_t i = 0; i < size; ++i)
                number[i] = given.left[begin + i] < 0 ? (*leaf)++ : given.categorical[begin + i] ? (*set)++ : 0;
            if (*leaf > given.leaves || *set > given.sets)
                return NO_SUCH_SET;
            std::vector<int32_t> order(1, 0), level(1, 0);
            std::vector<bool> seen(size, false);
            Tree tree{nodes.size(), -1, 0, leaf_width == 1 ? given.target[t] : 0, false, false, 0, 0, 0};
            seen[0] = true;
            for (size_t at = 0; at < order.size(); ++at) {  // grows while it is read
                const int64_t i = begin + order[at];
                Node<Key> node{std::numeric_limits<Key>::max(), static_cast<int32_t>(at), 0};
                Sum value = 0;
                if (given.left[i] < 0) {
                    tree.even = tree.even < 0 ? level[at] : tree.even;
                    tree.depth = level[at];
                    const Sum* from = static_cast<const Sum*>(given.values) + number[order[at]] * leaf_width;
                    for (int64_t k = 0; k < leaf_width; ++k)
                        if (!std::isfinite(from[k]))
                            return NOT_A_NUMBER;
                    value = from[0];
                } else {
                    const int32_t pair[2] = {given.left[i], given.right[i]};
                    for (int32_t child : pair) {
                        if (child < 0 || child >= size || seen[child])
                            return NOT_A_TREE;
                        seen[child] = true;
                    }
                    if (given.column[i] < 0 || given.column[i] >= columns)
                        return NO_SUCH_COLUMN;
                    node.left = static_cast<int32_t>(order.size());
                    if (given.categorical[i]) {
                        node.column = ~(given.column[i] * GROUP);
                        node.key = set_at[number[order[at]]];
                        tree.categorical = true;
                    } else {
                        const Value threshold = static_cast<const Value*>(given.thresholds)[i];
                        if (std::isnan(threshold))
                            return NOT_A_NUMBER;
                        node.column = given.column[i] * GROUP;
                        node.key = key_of(threshold) - (given.strict ? 1 : 0);
                    }
                    order.insert(order.end(), pair, pair + 2);
                    level.insert(level.end(), 2, level[at] + 1);
                }
                nodes.push_back(node);
                if (leaf_width == 1)
                    values.push_back(value);
                else
                    leaf_of.push_back(given.left[i] < 0 ? number[order[at]] * leaf_width : 0);
            }
            mark(&tree, order.size());
            trees.push_back(tree);
            return SOUND;
        }

        const Sum* leaf_values(size_t node) const {
            return leaf_width == 1 ? &values[node] : &values[leaf_of[node]];
        }

        // The leaves below each node of a tree, counted from the left.
        struct Leaves {
            int32_t begin, leaves;
            uint64_t bits() const { return ((uint64_t(1) << leaves) - 1) << begin; }    // of fewer than 64
        };
        std::vector<Leaves> leaf_spans(const Tree& tree, size_t size) const {
            const Node<Key>* first = &nodes[tree.first];
            std::vector<Leaves> spans(size, {0, 1});
            for (size_t i = size; i-- > 0;)             // children stand behind their parent
                if (first[i].left != static_cast<int32_t>(i))
                    spans[i].leaves = spans[first[i].left].leaves + spans[first[i].left + 1].leaves;
            for (size_t i = 0; i < size; ++i)
                if (first[i].left != static_cast<int32_t>(i)) {
                    spans[first[i].left].begin = spans[i].begin;
                    spans[first[i].left + 1].begin = spans[i].begin + spans[first[i].left].leaves;
                }
            return spans;
        }

        // Lay a tree of few leaves out as Splits, where it has no split on categories.
        void mark(Tree* tree, size_t size) {
            const Node<Key>* first = &nodes[tree->first];
            if (tree->categorical || size > 2 * 8 * sizeof(Key) - 1)
                return;
            const std::vector<Leaves> spans = leaf_spans(*tree, size);
            tree->marked = true;
            tree->first_split = splits.size();
            tree->first_exit = exits.size();
            exits.resize(exits.size() + spans[0].leaves * leaf_width);
            for (size_t i = 0; i < size; ++i) {
                const int32_t left = first[i].left;
                if (left == static_cast<int32_t>(i)) {
                    const Sum* leaf = leaf_values(tree->first + i);
                    std::copy(leaf, leaf + leaf_width, &exits[tree->first_exit + spans[i].begin * leaf_width]);
                } else {
                    splits.push_back({first[i].key, static_cast<Key>(spans[left].bits()), first[i].column});
                }
            }
            tree->n_splits = static_cast<int32_t>(splits.size() - tree->first_split);
        }

        // ---- values to keys ---------------------------------------------------------------------------------------
        static Key read(Value value, const Reader& reader, const double* tables, Value sentinel) {
            bool missing = std::isnan(value);
            if (reader.how & (READ_CODE | READ_TABLE)) {
                if (missing || ((reader.how & READ_SENTINEL) && value == sentinel))
                    return MISSING_CODE;
                if (reader.how & READ_CODE) {
                    const bool known = (reader.how & READ_TOWARDS_ZERO ? value > -1 : value >= 0) && value < CODE_LIMIT;
                    return known ? static_cast<Key>(static_cast<int32_t>(value)) + FIRST_CODE : UNKNOWN_CODE;
                }
                const double* table = tables + reader.table;
                const double* found = std::lower_bound(table, table + reader.table_size, static_cast<double>(value));
                return found != table + reader.table_size && *found == value
                    ? static_cast<Key>(found - table) + FIRST_CODE : UNKNOWN_CODE;
            }
            if (missing && (reader.how & READ_NAN_AS_ZERO)) {
                value = 0;
                missing = false;
            }
            if ((reader.how & (READ_FLUSHED | READ_ZERO_AS_MISSING)) && std::fabs(value) <= LIGHTGBM_ZERO) {
                missing |= (reader.how & READ_ZERO_AS_MISSING) != 0;
                value = reader.how & READ_FLUSHED ? 0 : value;
            }
            missing |= (reader.how & READ_SENTINEL) && value == sentinel;
            if (missing)
                return reader.how & READ_MISSING_RIGHT ? std::numeric_limits<Key>::max()
                                                       : std::numeric_limits<Key>::min();
            return key_of(value);
        }

        // The keys of a group: column by column, the rows side by side; what is not a row is as the last one.
        void read_group(const Value* rows, size_t width, int count, const Reader* readers, const double* tables,
                        Value sentinel, Key* keys) const {
            for (int64_t c = 0; c < columns; ++c, keys += GROUP) {
                const Reader reader = readers[c];
                const Value* value = rows + reader.feature;
                const uint32_t how = reader.how & ~READ_MISSING_RIGHT;
                if (how == 0 || how == READ_NAN_AS_ZERO) {
                    const Key lost = how ? 0 : reader.how ? std::numeric_limits<Key>::max()
                                                          : std::numeric_limits<Key>::min();
                    for (int r = 0; r < count; ++r)
                        keys[r] = std::isnan(value[r * width]) ? lost : key_of(value[r * width]);
                } else {
                    for (int r = 0; r < count; ++r)
                        keys[r] = read(value[r * width], reader, tables, sentinel);
                }
                for (int r = count; r < GROUP; ++r)
                    keys[r] = keys[count - 1];
            }
        }

        // ---- walks ------------------------------------------------------------------------------------------------
        // One row through one tree; its keys are GROUP apart.
        int32_t walk(const Tree& tree, const Key* row) const {
            const Node<Key>* first = &nodes[tree.first];
            int32_t at = 0;
            for (int32_t level = 0; level < tree.depth; ++level) {
                const Node<Key>& node = first[at];
                if (node.left == at)
                    break;
                if (node.column >= 0) {
                    at = node.left + (row[node.column] > node.key);
                } else {
                    const uint32_t* bits = &sets[static_cast<size_t>(node.key)];
                    const uint64_t code = static_cast<uint64_t>(row[~node.column]);
                    const uint32_t bit = code < bits[0] ? static_cast<uint32_t>(code) : UNKNOWN_CODE;
                    at = node.left + static_cast<int32_t>(bits[1 + (bit >> 5)] >> (bit & 31) & 1);
                }
            }
            return at;
        }

        // LANES rows of a group through one tree.
        void walk_rows(const Tree& tree, const Key* rows, int32_t* places) const {
            const Node<Key>* first = &nodes[tree.first];
            int32_t at[LANES] = {};
            int32_t level = 0;
            for (; level < tree.even; ++level)
                for (int lane = 0; lane < LANES; ++lane) {
                    const Node<Key>& node = first[at[lane]];
                    at[lane] = node.left + (rows[node.column + lane] > node.key);
                }
            for (; level < tree.depth; ++level) {
                int32_t moved = 0;
                for (int lane = 0; lane < LANES; ++lane) {
                    const Node<Key>& node = first[at[lane]];
                    const int32_t next = node.left + (rows[node.column + lane] > node.key);
                    moved |= next ^ at[lane];
                    at[lane] = next;
                }
                if (!moved)
                    break;
            }
            std::memcpy(places, at, sizeof at);
        }

        // One row through LANES trees.
        void walk_trees(const Tree* group, const Key* row, int32_t* places) const {
            const Node<Key>* first[LANES];
            int32_t at[LANES] = {};
            int32_t depth = 0;
            for (int lane = 0; lane < LANES; ++lane) {
                first[lane] = &nodes[group[lane].first];
                depth = std::max(depth, group[lane].depth);
            }
            for (int32_t level = 0; level < depth; ++level) {
                int32_t moved = 0;
                for (int lane = 0; lane < LANES; ++lane) {
                    const Node<Key>& node = first[lane][at[lane]];
                    const int32_t next = node.left + (row[node.column] > node.key);
                    moved |= next ^ at[lane];
                    at[lane] = next;
                }
                if (!moved)
                    break;
            }
            std::memcpy(places, at, sizeof at);
        }

        void take(const Tree& tree, int32_t at, Sum* sums) const {
            const size_t node = tree.first + at;
            if (leaf_width == 1) {
                sums[tree.target] += values[node];
                return;
            }
            const Sum* leaf = &values[leaf_of[node]];
            for (int64_t k = 0; k < leaf_width; ++k)
                sums[k] += leaf[k];
        }

        void add_row(const Key* row, Sum* sums) const {
            int32_t at[LANES];
            size_t t = 0;
            for (; t + LANES <= trees.size(); t += LANES) {
                bool categorical = false;
                for (int lane = 0; lane < LANES; ++lane)
                    categorical |= trees[t + lane].categorical;
                if (categorical) {
                    for (int lane = 0; lane < LANES; ++lane)
                        at[lane] = walk(trees[t + lane], row);
                } else {
                    walk_trees(&trees[t], row, at);
                }
                for (int lane = 0; lane < LANES; ++lane)
                    take(trees[t + lane], at[lane], sums);
            }
            for (; t < trees.size(); ++t)
                take(trees[t], walk(trees[t], row), sums);
        }

        void add_walked(const Tree& tree, const Key* keys, int64_t count, Sum* sums) const {
            int32_t at[LANES];
            for (int64_t r = 0; r < count; r += LANES) {
                const Key* rows = keys + (r / GROUP * columns * GROUP) + r % GROUP;
                const int lanes = static_cast<int>(std::min<int64_t>(LANES, count - r));
                if (tree.categorical) {
                    for (int lane = 0; lane < lanes; ++lane)
                        at[lane] = walk(tree, rows + lane);
                } else {
                    walk_rows(tree, rows, at);
                }
                for (int lane = 0; lane < lanes; ++lane)
                    take(tree, at[lane], sums + (r + lane) * outputs);
            }
        }

        static inline __attribute__((always_inline)) int leaf_of_bits(Key passed) {
            return __builtin_ctzll(~static_cast<uint64_t>(passed));     // a leaf is never passed by all
        }

        // ---- marks ------------------------------------------------------------------------------------------------
        // U groups through one tree, all its nodes: of each row the leaf that nothing has passed.
        template <int BYTES, int U> static inline __attribute__((always_inline))
        void mark_passed(const Split<Key>* split, int32_t count, const Key* keys, size_t stride, Key* passed) {
            typedef Key Vector __attribute__((vector_size(BYTES)));
            constexpr int PARTS = GROUP * sizeof(Key) / BYTES, LENGTH = BYTES / sizeof(Key);
            Vector marks[U * PARTS];
            for (Vector& part : marks)
                part = Vector{};
            for (int32_t i = 0; i < count; ++i) {
                const Vector key = split[i].key - Vector{}, bits = split[i].passed - Vector{};
                const Key* column = keys + split[i].column;
                for (int u = 0; u < U; ++u)
                    for (int part = 0; part < PARTS; ++part) {
                        const Key* some = column + u * stride + part * LENGTH;
                        marks[u * PARTS + part] |= (*reinterpret_cast<const Vector*>(some) > key) & bits;
                    }
            }
            for (int part = 0; part < U * PARTS; ++part)
                *reinterpret_cast<Vector*>(passed + part * LENGTH) = marks[part];
        }

        template <int BYTES> inline __attribute__((always_inline))
        void add_marked(const Tree& tree, const Key* keys, int64_t count, Sum* sums) const {
            alignas(GROUP_BYTES) Key passed[4 * GROUP];
            const Split<Key>* split = splits.data() + tree.first_split;
            const Sum* exit = exits.data() + tree.first_exit;
            const size_t stride = columns * GROUP;
            for (int64_t r = 0; r < count;) {
                const int64_t left = count - r;
                const Key* rows = keys + r * columns;
                int64_t size = GROUP;               // whole groups that there are: nothing lies behind the last one
                if (left > 3 * GROUP) {
                    size = 4 * GROUP;
                    mark_passed<BYTES, 4>(split, tree.n_splits, rows, stride, passed);
                } else if (left > GROUP) {
                    size = 2 * GROUP;
                    mark_passed<BYTES, 2>(split, tree.n_splits, rows, stride, passed);
                } else {
                    mark_passed<BYTES, 1>(split, tree.n_splits, rows, stride, passed);
                }
                size = std::min(left, size);
                Sum* to = sums + r * outputs + tree.target;
                if (leaf_width > 1) {
                    for (int64_t lane = 0; lane < size; ++lane, to += outputs) {
                        const Sum* leaf = exit + leaf_of_bits(passed[lane]) * leaf_width;
                        for (int64_t k = 0; k < leaf_width; ++k)
                            to[k] += leaf[k];
                    }
                } else if (outputs > 1) {
                    for (int64_t lane = 0; lane < size; ++lane, to += outputs)
                        *to += exit[leaf_of_bits(passed[lane])];
                } else {
                    for (int64_t lane = 0; lane < size; ++lane)
                        to[lane] += exit[leaf_of_bits(passed[lane])];
                }
                r += size;
            }
        }

        void add_passed(const Value* rows, size_t width, int64_t count, const double* tables, Value sentinel,
                        uint32_t* at, Sum* sums) const {
            const size_t groups = ways.size();          // no more than columns, and so is the scratch
            for (int64_t r = 0; r < count; ++r)
                for (size_t g = 0; g < groups; ++g) {
                    const Reader& way = ways[passes.groups[g].way];
                    const Key key = read(rows[r * width + way.feature], way, tables, sentinel);
                    at[r * groups + g] = passes.place(g, key);
                }
            passes.add(at, count, sums, outputs);
        }

        template <int BYTES> inline __attribute__((always_inline))
        void add_rows(const Key* keys, int64_t count, Sum* sums) const {
            for (const Tree& tree : trees) {
                if (tree.marked)
                    add_marked<BYTES>(tree, keys, count, sums);
                else
                    add_walked(tree, keys, count, sums);
            }
        }

        void add_rows_plain(const Key* keys, int64_t count, Sum* sums) const { add_rows<16>(keys, count, sums); }
        FASTINFER_WIDE
        void add_rows_wide(const Key* keys, int64_t count, Sum* sums) const { add_rows<32>(keys, count, sums); }

        void add(const void* rows, size_t width, int64_t count, const Reader* readers, const double* tables,
                 double sentinel, void* scratch, void* to) const override {
            Key* keys = static_cast<Key*>(scratch);
            Sum* sums = static_cast<Sum*>(to);
            if (count <= passes.rows) {
                add_passed(static_cast<const Value*>(rows), width, count, tables, static_cast<Value>(sentinel),
                           static_cast<uint32_t*>(scratch), sums);
                return;
            }
            for (int64_t r = 0; r < count; r += GROUP)
                read_group(static_cast<const Value*>(rows) + r * width, width,
                           static_cast<int>(std::min<int64_t>(GROUP, count - r)), readers, tables,
                           static_cast<Value>(sentinel), keys + r * columns);
            if (count <= FEW_ROWS)
                for (int64_t r = 0; r < count; ++r)
                    add_row(keys + r, sums + r * outputs);
            else if (wide)
                add_rows_wide(keys, count, sums);
            else
                add_rows_plain(keys, count, sums);
        }
    };

    template <typename Value, typename Key, typename Sum>
    Ensemble* planted(const Natural& given, int* flaw, int64_t* place) {
        auto grove = std::make_unique<Grove<Value, Key, Sum>>();
        if (given.leaf_width > 1) {
            const Sum* values = static_cast<const Sum*>(given.values);
            grove->values.assign(values, values + given.leaves * given.leaf_width);
        }
        *flaw = grove->plant(given, place);
        return *flaw == SOUND ? grove.release() : nullptr;
    }

    Ensemble* plant_forest(const Natural& given, bool single_values, bool single_sums, int* flaw, int64_t* place) {
        if (!single_values)
            return planted<double, int64_t, double>(given, flaw, place);
        if (single_sums)
            return planted<float, int32_t, float>(given, flaw, place);
        return planted<float, int32_t, double>(given, flaw, place);
    }

    }
    """
    bint narrow "fastinfer::narrow"
    bint prefer_passes "fastinfer::prefer_passes"
    Ensemble* plant_forest "fastinfer::plant_forest"(const Natural&, bint, bint, int*, int64_t*) except + nogil


def narrow_vectors(bint yes):
    """For tests: forests that are made from now on are run as on a processor without wide vectors."""
    global narrow
    narrow = yes


def through_passes(bint yes):
    """For tests: forests that are made from now on answer by passes wherever they can be laid out."""
    global prefer_passes
    prefer_passes = yes
