// One head of one token: normalise, rotate, and where keys and values go.
#pragma once

#include <cmath>

#include "attention.h"
#include "attention_vectors.h"

namespace rhizome {

// Whole vectors, then what is left of `size`: body(index, lanes).
template <class Body>
inline void for_lanes(int size, const Body& body) {
    int i = 0;
    for (; i + kLanes <= size; i += kLanes) body(i, kLanes);
    if (i < size) body(i, size - i);
}

template <class T>
inline Floats load_lanes(const T* p, int lanes) {
    return lanes == kLanes ? load(p) : load_first(p, lanes);
}
template <class T>
inline void store_lanes(T* p, Floats x, int lanes) {
    if (lanes == kLanes) {
        store(p, x);
    } else {
        store_first(p, x, lanes);
    }
}

// Normalise (where there is a gain), rotate (where the layer does) and multiply one query or key head.
//
// `target` has room for whole vectors; the lanes beyond head_dim become 0.
inline void prepare_head(const Step& step, const AttentionLayer& layer, const float* source, const float* gain,
                         int64_t token, float multiplier, float* target) {
    const int dim = layer.head_dim;
    float factor = multiplier;
    if (gain != nullptr) {
        Floats squares = zeros();
        for_lanes(dim, [&](int i, int lanes) {
            const Floats x = load_lanes(source + i, lanes);
            squares = fma(x, x, squares);
        });
        factor /= std::sqrt(reduce_add(squares) / static_cast<float>(dim) + layer.norm_eps);
    }
    const Floats factors = broadcast(factor);
    for_lanes(dim, [&](int i, int lanes) {
        Floats x = load_lanes(source + i, lanes) * factors;
        if (gain != nullptr) x = x * load_lanes(gain + i, lanes);
        store(target + i, x);
    });
    if (layer.rope < 0) return;
    const RopeTable& rope = step.arrays.ropes[layer.rope];
    const int half = static_cast<int>(rope.rotary_dim / 2);
    const float* cosines = rope.cos + token * half;
    const float* sines = rope.sin + token * half;
    for_lanes(half, [&](int i, int lanes) {
        const Floats cosine = load_lanes(cosines + i, lanes), sine = load_lanes(sines + i, lanes);
        const Floats first = load_lanes(target + i, lanes), second = load_lanes(target + half + i, lanes);
        store_lanes(target + i, fma(first, cosine, zeros() - second * sine), lanes);
        store_lanes(target + half + i, fma(second, cosine, first * sine), lanes);
    });
}

// Put a token's keys and values of some heads into their slot.
template <class T>
inline void store_token(const Step& step, const AttentionLayer& layer, const float* qkv, int64_t token,
                        int head_begin, int head_end) {
    const int dim = layer.head_dim;
    const float* keys = qkv + token * layer.qkv_stride() + static_cast<int64_t>(layer.num_heads) * dim;
    const float* values = keys + layer.token_stride();
    const int64_t slot = step.arrays.slot_mapping[token] * layer.token_stride();
    for (int head = head_begin; head < head_end; ++head) {
        const int64_t at = static_cast<int64_t>(head) * dim;
        alignas(64) float key[kMaxHeadDim];
        prepare_head(step, layer, keys + at, layer.k_norm, token, 1.0f, key);
        T* key_slot = static_cast<T*>(layer.keys) + slot + at;
        T* value_slot = static_cast<T*>(layer.values) + slot + at;
        for_lanes(dim, [&](int i, int lanes) {
            store_lanes(key_slot + i, load(key + i), lanes);
            store_lanes(value_slot + i, load_lanes(values + at + i, lanes), lanes);
        });
    }
}

// Query heads [begin, end) of a token, `padded_dim` apart, multiplied so that the scores are exponents of 2
// (or, where they are capped, arguments of tanh).
inline void load_queries(const Step& step, const AttentionLayer& layer, const float* qkv, int64_t token, int begin,
                         int end, float* target) {
    const float multiplier = layer.softcap > 0.0f ? layer.scale / layer.softcap : layer.scale * kLog2e;
    const float* queries = qkv + token * layer.qkv_stride();
    for (int head = begin; head < end; ++head, target += layer.padded_dim()) {
        prepare_head(step, layer, queries + static_cast<int64_t>(head) * layer.head_dim, layer.q_norm, token,
                     multiplier, target);
    }
}

// Where the tokens at positions [begin, begin + count) of a row lie; `first` is where slot 0 does.
template <class T>
inline void locate_tokens(const Step& step, const AttentionLayer& layer, int row, int begin, int count,
                          const T* first, const T** located) {
    const int64_t page_size = step.arrays.page_size, stride = layer.token_stride();
    const int32_t* pages = step.arrays.page_table + row * step.arrays.table_width;
    int64_t page = begin / page_size, inside = begin % page_size;
    for (int done = 0; done < count; inside = 0, ++page) {
        const T* token = first + (pages[page] * page_size + inside) * stride;
        for (; done < count && inside < page_size; ++inside, token += stride) located[done++] = token;
    }
}

// Rows of partial results: the weighted sum of values, then the highest score and the sum of the weights.
inline int64_t partial_stride(const AttentionLayer& layer) { return layer.padded_dim() + kLanes; }

// Write one head's result: divided, or as a part of a Merge.
inline void finish_head(const AttentionLayer& layer, const float* sums, float highest, float total, float* out,
                        float* partial) {
    if (partial != nullptr) {
        for (int i = 0; i < layer.padded_dim(); i += kLanes) store(partial + i, load(sums + i));
        partial[layer.padded_dim()] = highest;
        partial[layer.padded_dim() + 1] = total;
        return;
    }
    const Floats inverse = broadcast(1.0f / total);
    for_lanes(layer.head_dim, [&](int i, int lanes) { store_lanes(out + i, load(sums + i) * inverse, lanes); });
}

}  // namespace rhizome
