# Trees laid out for walking: a batch of rows goes through flat arrays of nodes, and the leaves are added up in the
# order and the type in which the model's own library adds them.
#
# Values become integer keys first, one column for each way in which the model's nodes read a feature: a missing value
# is the least or the greatest key, whichever sends it to its side, and a category is a number of its own. So every node
# asks the same question, whether a key is greater than its own, and a leaf is a node that nothing is greater than, and
# that leads back to itself: several rows walk through a tree in step, without a branch that a processor could guess
# wrong. A node's children stand beside each other, behind it.
from libc.stdint cimport int64_t

cdef extern from *:
    """
    #include <algorithm>
    #include <cmath>
    #include <cstdint>
    #include <cstring>
    #include <limits>
    #include <memory>
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
    constexpr int FEW_ROWS = 4;                                 // fewer go through several trees at a time

    enum Link : int { IDENTITY, SIGMOID, SOFTMAX, EXPONENTIAL, SIGNED_SQUARE, SOFTPLUS, STEP };
    enum Rule : int { MOST_PROBABLE, HIGHEST, ABOVE_ZERO, FROM_ZERO, ABOVE_HALF };

    struct Reader {                 // makes one column of keys
        int32_t feature;
        uint32_t how;
        int64_t table, table_size;
    };

    template <typename Key> struct Node {
        Key key;                    // of a split on categories: where its set begins
        int32_t left;               // the right child is the next one; a leaf's is itself
        int32_t column;             // ~column of a split on categories
    };

    struct Tree {
        size_t first;
        int32_t even, depth;        // levels down to the first leaf, and to the last
        int32_t target;
        bool categorical;
    };

    // As Python gives a forest; the lengths agree, and nothing else is known of it.
    struct Natural {
        int64_t trees, columns, outputs, leaf_width, leaves, sets;
        const int64_t* starts;      // trees + 1
        const int32_t *left, *right, *column, *target;
        const uint8_t* categorical;
        const void *thresholds, *values;
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

    enum Flaw : int { SOUND, NOT_A_TREE, NO_SUCH_COLUMN, NO_SUCH_TARGET, NO_SUCH_SET, NOT_A_NUMBER, EMPTY_TREE };

    struct Ensemble {
        virtual ~Ensemble() {}
        virtual void add(const void* rows, size_t width, int64_t count, const Reader* readers, const double* tables,
                         double sentinel, void* keys, void* sums) const = 0;
        int64_t columns = 0, outputs = 0;
        size_t key_size = 0, sum_size = 0, nodes_held = 0;
        int32_t depth = 0;
    };

    template <typename Value, typename Key, typename Sum> struct Grove : Ensemble {
        std::vector<Tree> trees;
        std::vector<Node<Key>> nodes;
        std::vector<Sum> values;            // of the nodes, or where a leaf has several, of the leaves
        std::vector<int64_t> leaf_of;       // where a leaf has several: its first value
        std::vector<uint32_t> sets;         // each its bits' number, then its bits: which codes go right
        int64_t leaf_width = 1;

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
            return SOUND;
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
            Tree tree{nodes.size(), -1, 0, leaf_width == 1 ? given.target[t] : 0, false};
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
                        node.column = ~given.column[i];
                        node.key = set_at[number[order[at]]];
                        tree.categorical = true;
                    } else {
                        const Value threshold = static_cast<const Value*>(given.thresholds)[i];
                        if (std::isnan(threshold))
                            return NOT_A_NUMBER;
                        node.column = given.column[i];
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
            depth = std::max(depth, tree.depth);
            trees.push_back(tree);
            return SOUND;
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

        void read_rows(const Value* rows, size_t width, int64_t count, const Reader* readers, const double* tables,
                       Value sentinel, Key* keys) const {
            for (int64_t c = 0; c < columns; ++c) {
                const Reader reader = readers[c];
                const Value* value = rows + reader.feature;
                Key* key = keys + c;
                if ((reader.how & ~READ_MISSING_RIGHT) == 0) {
                    const Key lost = reader.how ? std::numeric_limits<Key>::max() : std::numeric_limits<Key>::min();
                    for (int64_t r = 0; r < count; ++r, value += width, key += columns)
                        *key = std::isnan(*value) ? lost : key_of(*value);
                } else {
                    for (int64_t r = 0; r < count; ++r, value += width, key += columns)
                        *key = read(*value, reader, tables, sentinel);
                }
            }
        }

        // ---- walks ------------------------------------------------------------------------------------------------
        static int32_t step(const Node<Key>* tree, int32_t at, const Key* row) {
            const Node<Key>& node = tree[at];
            return node.left + (row[node.column] > node.key);
        }

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

        // LANES rows through one tree.
        void walk_rows(const Tree& tree, const Key* const* rows, int32_t* at) const {
            const Node<Key>* first = &nodes[tree.first];
            for (int lane = 0; lane < LANES; ++lane)
                at[lane] = 0;
            int32_t level = 0;
            for (; level < tree.even; ++level)
                for (int lane = 0; lane < LANES; ++lane)
                    at[lane] = step(first, at[lane], rows[lane]);
            for (; level < tree.depth; ++level) {
                int32_t moved = 0;
                for (int lane = 0; lane < LANES; ++lane) {
                    const int32_t next = step(first, at[lane], rows[lane]);
                    moved |= next ^ at[lane];
                    at[lane] = next;
                }
                if (!moved)
                    break;
            }
        }

        // One row through LANES trees.
        void walk_trees(const Tree* group, const Key* row, int32_t* at) const {
            const Node<Key>* first[LANES];
            int32_t depth = 0;
            for (int lane = 0; lane < LANES; ++lane) {
                first[lane] = &nodes[group[lane].first];
                at[lane] = 0;
                depth = std::max(depth, group[lane].depth);
            }
            for (int32_t level = 0; level < depth; ++level) {
                int32_t moved = 0;
                for (int lane = 0; lane < LANES; ++lane) {
                    const int32_t next = step(first[lane], at[lane], row);
                    moved |= next ^ at[lane];
                    at[lane] = next;
                }
                if (!moved)
                    break;
            }
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

        void add_rows(const Key* keys, int64_t count, Sum* sums) const {
            const Key* rows[LANES];
            int32_t at[LANES];
            const int64_t whole = count % LANES < FEW_ROWS ? count - count % LANES : count;
            for (const Tree& tree : trees) {
                if (tree.categorical) {
                    for (int64_t r = 0; r < whole; ++r)
                        take(tree, walk(tree, keys + r * columns), sums + r * outputs);
                    continue;
                }
                for (int64_t r = 0; r < whole; r += LANES) {
                    const int lanes = static_cast<int>(std::min<int64_t>(LANES, whole - r));
                    for (int lane = 0; lane < LANES; ++lane)
                        rows[lane] = keys + (r + std::min(lane, lanes - 1)) * columns;
                    walk_rows(tree, rows, at);
                    for (int lane = 0; lane < lanes; ++lane)
                        take(tree, at[lane], sums + (r + lane) * outputs);
                }
            }
            for (int64_t r = whole; r < count; ++r)
                add_row(keys + r * columns, sums + r * outputs);
        }

        void add(const void* rows, size_t width, int64_t count, const Reader* readers, const double* tables,
                 double sentinel, void* keys, void* sums) const override {
            read_rows(static_cast<const Value*>(rows), width, count, readers, tables, static_cast<Value>(sentinel),
                      static_cast<Key*>(keys));
            add_rows(static_cast<const Key*>(keys), count, static_cast<Sum*>(sums));
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
    Ensemble* plant_forest "fastinfer::plant_forest"(const Natural&, bint, bint, int*, int64_t*) except + nogil
