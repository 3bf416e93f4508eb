// Attention of a tile of queries: all heads that share a key-value head, of several tokens of one row.
//
// Keys come in blocks, packed once per tile: transposed, so that a vector holds 16 keys, and converted to
// float32. Scores, weights and sums of values are then products of small matrices. The softmax is computed
// while the blocks pass by, as in FlashAttention (Dao et al., 2022): sums are rescaled when a score higher than
// all before it appears.
//
//                        keys  block 0   block 1   block 2
//     rows of a panel   ┌────┬─────────┬─────────┬────────┐
//     (6 of query x     │    │  whole  │  whole  │◣ up to │   a panel computes the vectors up to its last
//      head, by query)  │    │         │         │ █◣diag.│   query's own key, and masks within the last
//                       └────┴─────────┴─────────┴────────┘
#pragma once

#include <algorithm>

#include "attention_heads.h"
#include "attention_panel.h"
#include "threads.h"

namespace rhizome {

constexpr int kTileKeys = 64;

// target[d * kTileKeys + k] = element d of key k; columns from `count` to the next multiple of 16 are 0.
template <class T>
void pack_keys(const T* const* keys, int count, int dim, float* target) {
    for (int k = 0; k < count; k += kLanes) {
        for_lanes(dim, [&](int i, int lanes) {
            Floats block[kLanes];
            for (int j = 0; j < kLanes; ++j)
                block[j] = k + j < count ? load_lanes(keys[k + j] + i, lanes) : zeros();
            transpose(block);
            for (int j = 0; j < lanes; ++j) store(target + (i + j) * kTileKeys + k, block[j]);
        });
    }
}

// target[k * padded_dim + d] = element d of value k
template <class T>
void pack_values(const T* const* values, int count, int dim, int padded_dim, float* target) {
    for (int k = 0; k < count; ++k, target += padded_dim)
        for_lanes(dim, [&](int i, int lanes) { store(target + i, load_lanes(values[k] + i, lanes)); });
}

// Running softmax of a tile's rows.
struct TileRows {
    float* sums;     // [rows, padded_dim]
    float* highest;  // [rows]
    float* totals;   // [rows, kLanes], to be added up at the end
};

// Turn a row's scores of this block into weights; only columns [begin, end) are seen, of `vectors` vectors.
inline void weigh_block(float* scores, int vectors, int begin, int end, float softcap, int padded_dim, float* sums,
                        float& highest, float* totals) {
    Floats score[kTileKeys / kLanes];
    Floats top = broadcast(kLowest);
    for (int v = 0; v < vectors; ++v) {
        score[v] = load(scores + v * kLanes);
        if (softcap > 0.0f) score[v] = broadcast(softcap * kLog2e) * tanh(score[v]);
        if (begin > v * kLanes || end < (v + 1) * kLanes) {
            const Floats column = count_from(static_cast<float>(v * kLanes)), lowest = broadcast(kLowest);
            score[v] = select_less(column, broadcast(static_cast<float>(end)), score[v], lowest);
            score[v] = select_less(column, broadcast(static_cast<float>(begin)), lowest, score[v]);
        }
        top = max(score[v], top);
    }
    const float block_highest = reduce_max(top);
    Floats total = load(totals);
    if (block_highest > highest) {
        const Floats factor = exp2_negative(broadcast(highest - block_highest));
        highest = block_highest;
        total = total * factor;
        for (int i = 0; i < padded_dim; i += kLanes) store(sums + i, load(sums + i) * factor);
    }
    const Floats reference = broadcast(highest);
    for (int v = 0; v < vectors; ++v) {
        const Floats weight = exp2_negative(score[v] - reference);
        store(scores + v * kLanes, weight);
        total = total + weight;
    }
    store(totals, total);
}

// `out` is the step's result, `partial` the item's first partial row or null.
template <class T>
void attend_tile(const Step& step, const AttentionLayer& layer, const Item& item, const float* qkv, float* out,
                 float* partial) {
    const int dim = layer.head_dim, padded = layer.padded_dim(), group = layer.group();
    const int queries = item.query_end - item.query_begin, rows = queries * group;
    const int row_start = step.arrays.query_start[item.row];
    const int new_tokens = step.arrays.query_start[item.row + 1] - row_start;
    const int first_position = step.arrays.context_len[item.row] - new_tokens + item.query_begin;
    const int64_t first_token = row_start + item.query_begin;
    const int first_head = item.kv_head_begin * group;

    constexpr int64_t kPointerFloats = kTileKeys * sizeof(const T*) / sizeof(float);
    const int64_t floats = kPointerFloats + static_cast<int64_t>(rows) * (2 * padded + kTileKeys + kLanes + 1) +
                           2 * kTileKeys * padded;
    float* scratch = static_cast<float*>(thread_scratch(0, floats * static_cast<int64_t>(sizeof(float))));
    const T** tokens = reinterpret_cast<const T**>(scratch);
    float* packed_keys = scratch + kPointerFloats;
    float* packed_values = packed_keys + kTileKeys * padded;
    float* scores = packed_values + kTileKeys * padded;
    float* tile = scores + static_cast<int64_t>(rows) * kTileKeys;
    float* sums = tile + static_cast<int64_t>(rows) * padded;
    float* totals = sums + static_cast<int64_t>(rows) * padded;
    float* highest = totals + static_cast<int64_t>(rows) * kLanes;

    for (int q = 0; q < queries; ++q)
        load_queries(step, layer, qkv, first_token + q, first_head, first_head + group, tile + q * group * padded);
    std::fill(sums, sums + static_cast<int64_t>(rows) * (padded + kLanes), 0.0f);
    std::fill(highest, highest + rows, kLowest);

    const T* keys = static_cast<const T*>(layer.keys) + static_cast<int64_t>(item.kv_head_begin) * dim;
    const T* values = static_cast<const T*>(layer.values) + static_cast<int64_t>(item.kv_head_begin) * dim;
    const int window = layer.window > 0 ? layer.window : INT32_MAX / 2;
    for (int block = item.key_begin; block < item.key_end; block += kTileKeys) {
        const int count = std::min(kTileKeys, item.key_end - block);
        locate_tokens(step, layer, item.row, block, count, keys, tokens);
        pack_keys(tokens, count, dim, packed_keys);
        locate_tokens(step, layer, item.row, block, count, values, tokens);
        pack_values(tokens, count, dim, padded, packed_values);
        const int next = std::min(kTileKeys, item.key_end - block - count);
        locate_tokens(step, layer, item.row, block + count, next, keys, tokens);
        for (int k = 0; k < next; ++k) {
            prefetch(tokens[k], dim);
            prefetch(values + (tokens[k] - keys), dim);
        }
        // Queries whose window reaches into the block.
        const int query_begin = std::max(0, block - first_position);
        const int query_end = std::min<int64_t>(queries, int64_t{block} + count - 1 + window - first_position);
        for (int r = query_begin * group; r < query_end * group; r += kPanelRows) {
            const int here = std::min(kPanelRows, query_end * group - r);
            const int last_position = first_position + (r + here - 1) / group;
            const int columns = std::min(count, last_position + 1 - block);
            const int vectors = (columns + kLanes - 1) / kLanes;
            float* panel = scores + static_cast<int64_t>(r) * kTileKeys;
            multiply<false>(here, tile + static_cast<int64_t>(r) * padded, padded, packed_keys, kTileKeys, panel,
                            kTileKeys, dim, vectors);
            for (int i = 0; i < here; ++i) {
                const int position = first_position + (r + i) / group;
                weigh_block(panel + i * kTileKeys, vectors, std::max(0, position - window + 1 - block),
                            std::min(count, position + 1 - block), layer.softcap, padded,
                            sums + static_cast<int64_t>(r + i) * padded, highest[r + i],
                            totals + static_cast<int64_t>(r + i) * kLanes);
            }
            multiply<true>(here, panel, kTileKeys, packed_values, padded, sums + static_cast<int64_t>(r) * padded,
                           padded, columns, padded / kLanes);
        }
    }
    for (int r = 0; r < rows; ++r) {
        const int64_t token = first_token + r / group;
        float* target = out + (token * layer.num_heads + first_head + r % group) * dim;
        finish_head(layer, sums + static_cast<int64_t>(r) * padded, highest[r],
                    reduce_add(load(totals + static_cast<int64_t>(r) * kLanes)), target,
                    partial == nullptr ? nullptr : partial + r * partial_stride(layer));
    }
}

}  // namespace rhizome
