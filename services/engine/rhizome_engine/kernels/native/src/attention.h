// Attention over a paged KV pool: what its parts share.
//
// A call computes one layer of a step. Its work is cut into *items* (attention_work.cpp), each computed by one
// thread in one of two ways: a row of one new token reads keys and values in place (attention_decode.h), a tile
// of several query rows multiplies packed blocks of them (attention_tile.h).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace rhizome {

enum class Element : int32_t { float32 = 0, bfloat16 = 1, float16 = 2 };

constexpr int kMaxHeadDim = 256;
constexpr int kMaxHeadsInPlace = 8;  // query heads per key-value head up to which a token is attended in place
constexpr int kMaxKeysInPlace = 256;  // keys of one item that is attended in place
constexpr int kMaxKvHeadsInPlace = 4;

// One layer; attention/native.py has the same structure.
struct AttentionLayer {
    void* keys;           // [num_pages, page_size, num_kv_heads, head_dim] of `element`
    void* values;         // like keys
    const float* q_norm;  // [head_dim], null for none
    const float* k_norm;  // [head_dim], null for none
    int32_t num_heads;
    int32_t num_kv_heads;
    int32_t head_dim;
    int32_t window;  // 0 for all
    int32_t rope;    // index into the step's tables, negative for none
    Element element;
    float scale;
    float softcap;  // 0 for none
    float norm_eps;

    int group() const { return num_heads / num_kv_heads; }
    int64_t token_stride() const { return static_cast<int64_t>(num_kv_heads) * head_dim; }
    int64_t qkv_stride() const { return static_cast<int64_t>(num_heads + 2 * num_kv_heads) * head_dim; }
    // Floats between heads in scratch: whole vectors.
    int padded_dim() const { return (head_dim + 15) / 16 * 16; }
};

// Cosines and sines of a step's tokens, each [num_tokens, rotary_dim / 2]; mirrored as well.
struct RopeTable {
    const float* cos;
    const float* sin;
    int64_t rotary_dim;
};

// One step, the same for all layers; mirrored as well. The arrays stay the caller's.
struct StepArrays {
    const int32_t* query_start;    // [num_rows + 1]
    const int32_t* context_len;    // [num_rows]
    const int32_t* page_table;     // [num_rows, table_width]
    const int64_t* slot_mapping;   // [num_tokens]
    const RopeTable* ropes;
    int64_t num_rows;
    int64_t num_tokens;
    int64_t table_width;
    int64_t page_size;
    int64_t num_pages;
};

// A part of a layer's work: some queries of a row, some of its heads, some of its keys.
struct Item {
    int32_t row;
    int32_t query_begin, query_end;      // among the row's new tokens
    int32_t kv_head_begin, kv_head_end;  // with all query heads that read them
    int32_t key_begin, key_end;          // positions
    int32_t merge;                       // index of the Merge that this is a part of, -1 for none
    int32_t part;
    bool in_place;
    int64_t cost;  // multiplications
};

// Items that see different keys of the same queries; who finishes last adds them up, always in the same order.
struct Merge {
    int32_t parts;
    int32_t rows;  // queries * heads
    int64_t offset;  // in the partial results, in floats
    int32_t left;  // parts that are not done; atomic
};

// Tokens [begin, end) of the step, whose keys and values are stored before any item begins.
struct StoreBlock {
    int32_t begin, end;
};

// The items of layers that have the same shape.
struct Work {
    int32_t num_heads, num_kv_heads, head_dim, window;
    int64_t cost = 0;
    std::vector<Item> items;
    std::vector<Merge> merges;
    std::vector<StoreBlock> stores;
    std::vector<float> partials;
};

struct Step {
    StepArrays arrays{};
    std::vector<std::unique_ptr<Work>> works;  // the first `num_works` belong to this step, others are spare
    size_t num_works = 0;

    // Begin a step. Returns the first row whose numbers do not fit together, -1 if all do.
    int64_t begin(const StepArrays& of_step);

    // The items for layers of this shape, made when the first one comes.
    Work& work_for(const AttentionLayer& layer);
};

}  // namespace rhizome
