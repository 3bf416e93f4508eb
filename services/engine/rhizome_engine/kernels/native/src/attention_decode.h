// Attention of one token, whose keys and values are read where they lie.
//
// Memory is what limits it, so each key and each value is touched once, page after page: first the scores of
// all keys with all heads, then the weights, then the sum of the values. The query heads that share a key-value
// head are computed together, so an element is converted once for all of them. All that an item reads, in order,
// is its *track*; what lies some way ahead on it is fetched while the arithmetic goes on:
//
//     track   key 0, key 1, ... | value 0, value 1, ... | the first keys of an item that follows
//             computed ^   ^ fetched
#pragma once

#include <algorithm>

#include "attention_heads.h"
#include "threads.h"

namespace rhizome {

#if RHIZOME_AVX512
constexpr int kHeadsAtOnce = 4, kKeysAtOnce = 4, kPairsAtOnce = 2;
#else
constexpr int kHeadsAtOnce = 2, kKeysAtOnce = 2, kPairsAtOnce = 1;
#endif
constexpr int kScoreStride = kMaxKeysInPlace + kLanes;
constexpr int kValueBlock = 32;    // values whose sums stay in registers
constexpr int kBytesAhead = 24576;  // between what is computed and what is fetched
constexpr int kMaxAhead = 256;     // the same in tokens
constexpr int kTrackLength = 2 * kMaxKeysInPlace + kMaxAhead + kLanes;

// scores[h * kScoreStride + k] = query h * key k; a key begins `at` elements behind what the track says
template <class T, int kHeads>
inline void dot_keys(const T* const* track, int64_t at, int ahead, const float* queries, int padded_dim, int dim,
                     float* scores) {
    const T* keys[kKeysAtOnce];
    RHIZOME_UNROLL
    for (int k = 0; k < kKeysAtOnce; ++k) {
        keys[k] = track[k] + at;
        prefetch(track[k + ahead] + at, dim);
    }
    Floats sums[kHeads][kKeysAtOnce];
    RHIZOME_UNROLL
    for (auto& of_head : sums)
        RHIZOME_UNROLL
        for (Floats& sum : of_head) sum = zeros();
    int i = 0;
    for (; i + 2 * kLanes <= dim; i += 2 * kLanes) {
        Floats first[kKeysAtOnce], second[kKeysAtOnce];
        RHIZOME_UNROLL
        for (int k = 0; k < kKeysAtOnce; ++k) load_pair(keys[k] + i, first[k], second[k]);
        RHIZOME_UNROLL
        for (int h = 0; h < kHeads; ++h) {
            const Floats query = load(queries + h * padded_dim + i);
            RHIZOME_UNROLL
            for (int k = 0; k < kKeysAtOnce; ++k) sums[h][k] = fma(first[k], query, sums[h][k]);
        }
        RHIZOME_UNROLL
        for (int h = 0; h < kHeads; ++h) {
            const Floats query = load(queries + h * padded_dim + i + kLanes);
            RHIZOME_UNROLL
            for (int k = 0; k < kKeysAtOnce; ++k) sums[h][k] = fma(second[k], query, sums[h][k]);
        }
    }
    for (; i < dim; i += kLanes) {
        RHIZOME_UNROLL
        for (int k = 0; k < kKeysAtOnce; ++k) {
            const Floats key = load_lanes(keys[k] + i, std::min(dim - i, kLanes));
            RHIZOME_UNROLL
            for (int h = 0; h < kHeads; ++h)
                sums[h][k] = fma(key, load(queries + h * padded_dim + i), sums[h][k]);
        }
    }
    RHIZOME_UNROLL
    for (int h = 0; h < kHeads; ++h) {
        float* target = scores + h * kScoreStride;
        if constexpr (kKeysAtOnce == 4) {
            _mm_storeu_ps(target, sum_lanes(sums[h][0], sums[h][1], sums[h][2], sums[h][3]));
        } else {
            const __m128 sum = sum_lanes(sums[h][0], sums[h][1], sums[h][0], sums[h][1]);
            _mm_storel_pi(reinterpret_cast<__m64*>(target), sum);
        }
    }
}

// sums[h] += weights[h * kScoreStride + k] * value k, for elements [at, at + 2 * kPairs * kLanes) of the token
template <class T, int kHeads, int kPairs>
inline void add_values(const T* const* track, int64_t at, int ahead, int count, const float* weights, float* sums,
                       int padded_dim) {
    Floats sum[kHeads][2 * kPairs];
    RHIZOME_UNROLL
    for (int h = 0; h < kHeads; ++h)
        RHIZOME_UNROLL
        for (int i = 0; i < 2 * kPairs; ++i) sum[h][i] = load(sums + h * padded_dim + i * kLanes);
    for (int k = 0; k < count; ++k) {
        const T* value = track[k] + at;
        prefetch(track[k + ahead] + at, 2 * kPairs * kLanes);
        Floats weight[kHeads];
        RHIZOME_UNROLL
        for (int h = 0; h < kHeads; ++h) weight[h] = broadcast(weights[h * kScoreStride + k]);
        RHIZOME_UNROLL
        for (int pair = 0; pair < kPairs; ++pair) {
            Floats first, second;
            load_pair(value + 2 * pair * kLanes, first, second);
            RHIZOME_UNROLL
            for (int h = 0; h < kHeads; ++h) sum[h][2 * pair] = fma(first, weight[h], sum[h][2 * pair]);
            RHIZOME_UNROLL
            for (int h = 0; h < kHeads; ++h) sum[h][2 * pair + 1] = fma(second, weight[h], sum[h][2 * pair + 1]);
        }
    }
    RHIZOME_UNROLL
    for (int h = 0; h < kHeads; ++h)
        RHIZOME_UNROLL
        for (int i = 0; i < 2 * kPairs; ++i) store(sums + h * padded_dim + i * kLanes, sum[h][i]);
}

// The same for the last elements of a head, fewer than a pair of vectors.
template <class T, int kHeads>
inline void add_last_values(const T* const* track, int64_t at, int count, const float* weights, float* sums,
                            int padded_dim, int lanes) {
    Floats sum[kHeads];
    RHIZOME_UNROLL
    for (int h = 0; h < kHeads; ++h) sum[h] = load(sums + h * padded_dim);
    for (int k = 0; k < count; ++k) {
        const Floats value = load_lanes(track[k] + at, lanes);
        RHIZOME_UNROLL
        for (int h = 0; h < kHeads; ++h)
            sum[h] = fma(value, broadcast(weights[h * kScoreStride + k]), sum[h]);
    }
    RHIZOME_UNROLL
    for (int h = 0; h < kHeads; ++h) store(sums + h * padded_dim, sum[h]);
}

template <class T, int kHeads>
inline void sum_values(const T* const* track, int64_t at, int ahead, int count, const float* weights, float* sums,
                       int padded_dim, int dim) {
    int i = 0;
    for (; i + 2 * kPairsAtOnce * kLanes <= dim; i += 2 * kPairsAtOnce * kLanes)
        add_values<T, kHeads, kPairsAtOnce>(track, at + i, ahead, count, weights, sums + i, padded_dim);
    for (; i + 2 * kLanes <= dim; i += 2 * kLanes)
        add_values<T, kHeads, 1>(track, at + i, ahead, count, weights, sums + i, padded_dim);
    for (; i < dim; i += kLanes)
        add_last_values<T, kHeads>(track, at + i, count, weights, sums + i, padded_dim, std::min(dim - i, kLanes));
}

// Call body(first head, number of heads as a constant) for a group of query heads, few at a time and evenly.
template <class Body>
inline void for_heads(int group, const Body& body) {
    const int rounds = (group + kHeadsAtOnce - 1) / kHeadsAtOnce;
    for (int round = 0, first = 0; round < rounds; ++round) {
        const int heads = (group - first + rounds - round - 1) / (rounds - round);
        switch (heads) {
            case 1: body(first, std::integral_constant<int, 1>()); break;
            case 2: body(first, std::integral_constant<int, 2>()); break;
#if RHIZOME_AVX512
            case 3: body(first, std::integral_constant<int, 3>()); break;
            case 4: body(first, std::integral_constant<int, 4>()); break;
#endif
        }
        first += heads;
    }
}

// Turn scores into weights; they may be read up to a multiple of kLanes. Returns the highest score.
inline float weigh(float* scores, int count, float softcap, float& total) {
    const Floats lowest = broadcast(kLowest);
    for (int k = count; k % kLanes != 0; ++k) scores[k] = kLowest;
    Floats highest = lowest;
    for (int k = 0; k < count; k += kLanes) {
        Floats score = load(scores + k);
        if (softcap > 0.0f) {
            const Floats capped = broadcast(softcap * kLog2e) * tanh(score);
            score = count - k >= kLanes ? capped : select_less(count_from(0), broadcast(count - k), capped, lowest);
            store(scores + k, score);
        }
        highest = max(score, highest);
    }
    const float top = reduce_max(highest);
    Floats sum = zeros();
    for (int k = 0; k < count; k += kLanes) {
        const Floats weight = exp2_negative(load(scores + k) - broadcast(top));
        store(scores + k, weight);
        sum = sum + weight;
    }
    total = reduce_add(sum);
    return top;
}

// How far ahead of the arithmetic memory is fetched, in tokens.
template <class T>
inline int tokens_ahead(const AttentionLayer& layer, const Item& item) {
    const int token_bytes = (item.kv_head_end - item.kv_head_begin) * layer.head_dim * static_cast<int>(sizeof(T));
    return std::clamp(kBytesAhead / token_bytes, kKeysAtOnce, kMaxAhead);
}

// Lay out an item's track, from its first key-value head on.
template <class T>
inline void lay_track(const Step& step, const AttentionLayer& layer, const Item& item, const Item* following,
                      int ahead, const T** track) {
    const int count = item.key_end - item.key_begin;
    const int64_t skipped = static_cast<int64_t>(item.kv_head_begin) * layer.head_dim;
    const T* values = static_cast<const T*>(layer.values) + skipped;
    locate_tokens(step, layer, item.row, item.key_begin, count, static_cast<const T*>(layer.keys) + skipped, track);
    const int64_t to_values = values - (static_cast<const T*>(layer.keys) + skipped);
    for (int k = 0; k < count; ++k) track[count + k] = track[k] + to_values;
    int end = 2 * count;
    if (following != nullptr) {
        const int more = std::min(ahead, following->key_end - following->key_begin);
        locate_tokens(step, layer, following->row, following->key_begin, more,
                      static_cast<const T*>(layer.keys) + skipped, track + end);
        end += more;
    }
    // Keys are read some at a time, so beyond the last there must be something; what comes of it is ignored.
    for (; end < 2 * count + ahead + kKeysAtOnce; ++end) track[end] = track[2 * count - 1];
}

// `out` is the step's result, `partial` the item's first partial row or null; `following` is an item that this
// thread is likely to compute next, or null.
template <class T>
void attend_in_place(const Step& step, const AttentionLayer& layer, const Item& item, const Item* following,
                     const float* qkv, float* out, float* partial) {
    const int dim = layer.head_dim, padded = layer.padded_dim(), group = layer.group();
    const int kv_heads = item.kv_head_end - item.kv_head_begin, heads = kv_heads * group;
    const int count = item.key_end - item.key_begin, pairs = dim / (2 * kLanes);
    const int64_t token = step.arrays.query_start[item.row];
    const int first_head = item.kv_head_begin * group, ahead = tokens_ahead<T>(layer, item);

    constexpr int64_t kTrackBytes = kTrackLength * sizeof(const T*);
    const int64_t vectors = static_cast<int64_t>(heads) * padded;
    char* scratch = static_cast<char*>(
        thread_scratch(0, kTrackBytes + (2 * vectors + static_cast<int64_t>(heads) * kScoreStride) * sizeof(float)));
    const T** track = reinterpret_cast<const T**>(scratch);
    float* queries = reinterpret_cast<float*>(scratch + kTrackBytes);
    float* sums = queries + vectors;
    float* scores = sums + vectors;

    lay_track(step, layer, item, following, ahead, track);
    for (int k = 0; k < std::min(ahead, count); ++k) prefetch(track[k], kv_heads * dim);
    if (item.key_end == step.arrays.context_len[item.row])
        store_token<T>(step, layer, qkv, token, item.kv_head_begin, item.kv_head_end);
    load_queries(step, layer, qkv, token, first_head, first_head + heads, queries);
    for (int h = 0; h < heads; ++h) to_pair_order<T>(queries + h * padded, pairs);
    std::fill(sums, sums + vectors, 0.0f);

    for (int k = 0; k < count; k += kKeysAtOnce) {
        for (int kv = 0; kv < kv_heads; ++kv) {
            for_heads(group, [&](int h, auto size) {
                const int head = kv * group + h;
                dot_keys<T, size.value>(track + k, kv * dim, ahead, queries + head * padded, padded, dim,
                                        scores + head * kScoreStride + k);
            });
        }
    }
    float highest[kMaxKvHeadsInPlace * kMaxHeadsInPlace], total[kMaxKvHeadsInPlace * kMaxHeadsInPlace];
    for (int h = 0; h < heads; ++h) highest[h] = weigh(scores + h * kScoreStride, count, layer.softcap, total[h]);
    for (int k = 0; k < count; k += kValueBlock) {
        const int here = std::min(count - k, kValueBlock);
        for (int kv = 0; kv < kv_heads; ++kv) {
            for_heads(group, [&](int h, auto size) {
                const int head = kv * group + h;
                sum_values<T, size.value>(track + count + k, kv * dim, ahead, here, scores + head * kScoreStride + k,
                                          sums + head * padded, padded, dim);
            });
        }
    }
    float* target = out + (token * layer.num_heads + first_head) * dim;
    for (int h = 0; h < heads; ++h) {
        from_pair_order<T>(sums + h * padded, pairs);
        finish_head(layer, sums + h * padded, highest[h], total[h], target + h * dim,
                    partial == nullptr ? nullptr : partial + h * partial_stride(layer));
    }
}

}  // namespace rhizome
