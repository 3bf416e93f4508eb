// How a layer's work is cut into items.
//
// Cuts depend on the row alone (and on the layer's shape), never on the other rows or on the number of threads:
// a sum of floats depends on its order, and a row's result must not depend on its neighbours.
#include <algorithm>

#include "attention.h"

namespace rhizome {
namespace {

constexpr int kTileRows = 96;        // query x head of a tile, about
constexpr int kLongRow = 1024;       // new tokens from which on tiles are twice as large, to pack keys less often
constexpr int kMinTileQueries = 8;
constexpr int kMaxTileQueries = 64;
constexpr int kItemsPerRow = 8;      // that a row of several tokens is cut into at least, where it is long enough
constexpr int kMinKeysPerPart = 512;  // of such a row
constexpr int kPartAlignment = 64;
constexpr int kStoreTokens = 16;

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Cut an item's keys into equal parts that are merged afterwards.
void add_parts(Work& work, Item item, int parts, int64_t partial_stride, int64_t& partial_floats) {
    const int keys = item.key_end - item.key_begin;
    const int size = ceil_div(ceil_div(keys, parts), kPartAlignment) * kPartAlignment;
    parts = ceil_div(keys, size);
    const int queries = item.query_end - item.query_begin;
    const int rows = queries * (item.kv_head_end - item.kv_head_begin) * (work.num_heads / work.num_kv_heads);
    item.merge = -1;
    if (parts > 1) {
        item.merge = static_cast<int32_t>(work.merges.size());
        work.merges.push_back({parts, rows, partial_floats, parts});
        partial_floats += parts * rows * partial_stride;
    }
    const int end = item.key_end;
    for (item.part = 0; item.part < parts; ++item.part, item.key_begin = item.key_end) {
        item.key_end = std::min(item.key_begin + size, end);
        item.cost = static_cast<int64_t>(item.key_end - item.key_begin) * rows * work.head_dim;
        work.cost += item.cost;
        work.items.push_back(item);
    }
}

// A row of one token: heads that together fill a page's cache lines, keys in parts of at most kMaxKeysInPlace.
void cut_token(Work& work, Item item, int64_t partial_stride, int64_t& partial_floats) {
    const int rounds = ceil_div(work.num_kv_heads, kMaxKvHeadsInPlace);
    const int parts = ceil_div(item.key_end - item.key_begin, kMaxKeysInPlace);
    item.in_place = true;
    item.kv_head_end = 0;
    for (int round = 0; round < rounds; ++round) {
        item.kv_head_begin = item.kv_head_end;
        item.kv_head_end += ceil_div(work.num_kv_heads - item.kv_head_begin, rounds - round);
        add_parts(work, item, parts, partial_stride, partial_floats);
    }
}

// A row of several tokens: tiles of queries for each key-value head, and parts of the keys where tiles are few.
void cut_tiles(Work& work, Item item, int context_len, int new_tokens, int64_t partial_stride,
               int64_t& partial_floats) {
    const int group = work.num_heads / work.num_kv_heads;
    const int tile_rows = new_tokens < kLongRow ? kTileRows : 2 * kTileRows;
    const int most = std::clamp(tile_rows / group, kMinTileQueries, kMaxTileQueries);
    const int tiles = ceil_div(new_tokens, most), size = ceil_div(new_tokens, tiles);
    const int wanted_parts = ceil_div(kItemsPerRow, tiles * work.num_kv_heads);
    item.in_place = false;
    for (int begin = 0; begin < new_tokens; begin += size) {
        item.query_begin = begin;
        item.query_end = std::min(begin + size, new_tokens);
        const int first_position = context_len - new_tokens + begin;
        item.key_begin = work.window > 0 ? std::max(0, first_position - work.window + 1) : 0;
        item.key_end = context_len - new_tokens + item.query_end;
        const int parts = std::clamp((item.key_end - item.key_begin) / kMinKeysPerPart, 1, wanted_parts);
        for (int head = 0; head < work.num_kv_heads; ++head) {
            item.kv_head_begin = head;
            item.kv_head_end = head + 1;
            add_parts(work, item, parts, partial_stride, partial_floats);
        }
    }
}

void cut(const StepArrays& arrays, const AttentionLayer& layer, Work& work) {
    work.cost = 0;
    work.items.clear();
    work.merges.clear();
    work.stores.clear();
    int64_t partial_floats = 0;
    const int64_t partial_stride = layer.padded_dim() + 16;
    for (int row = 0; row < arrays.num_rows; ++row) {
        const int start = arrays.query_start[row], end = arrays.query_start[row + 1];
        const int new_tokens = end - start, context_len = arrays.context_len[row];
        if (new_tokens <= 0) continue;
        Item item{};
        item.row = row;
        if (new_tokens == 1 && layer.group() <= kMaxHeadsInPlace) {
            item.query_end = 1;
            item.key_begin = work.window > 0 ? std::max(0, context_len - work.window) : 0;
            item.key_end = context_len;
            cut_token(work, item, partial_stride, partial_floats);
            continue;
        }
        for (int token = start; token < end; token += kStoreTokens)
            work.stores.push_back({token, std::min(token + kStoreTokens, end)});
        cut_tiles(work, item, context_len, new_tokens, partial_stride, partial_floats);
    }
    // The largest first, so that threads end together.
    std::sort(work.items.begin(), work.items.end(), [](const Item& a, const Item& b) { return a.cost > b.cost; });
    if (work.partials.size() < static_cast<size_t>(partial_floats)) work.partials.resize(partial_floats);
}

// Whether all that kernels will read and write for a row lies within the pool.
bool fits(const StepArrays& arrays, int64_t row) {
    const int64_t start = arrays.query_start[row], end = arrays.query_start[row + 1];
    const int64_t context_len = arrays.context_len[row];
    if (start < 0 || end < start || end > arrays.num_tokens || context_len < end - start) return false;
    const int64_t pages = (context_len + arrays.page_size - 1) / arrays.page_size;
    if (pages > arrays.table_width) return false;
    const int32_t* table = arrays.page_table + row * arrays.table_width;
    int32_t outside = 0;
    for (int64_t i = 0; i < pages; ++i) outside |= table[i] < 0 || table[i] >= arrays.num_pages;
    for (int64_t token = start; token < end; ++token) {
        const int64_t position = context_len - (end - token);
        const int64_t slot = table[position / arrays.page_size] * arrays.page_size + position % arrays.page_size;
        outside |= arrays.slot_mapping[token] != slot;
    }
    return outside == 0;
}

}  // namespace

int64_t Step::begin(const StepArrays& of_step) {
    arrays = of_step;
    num_works = 0;
    for (int64_t row = 0; row < arrays.num_rows; ++row)
        if (!fits(arrays, row)) return row;
    return -1;
}

Work& Step::work_for(const AttentionLayer& layer) {
    for (size_t i = 0; i < num_works; ++i) {
        Work& work = *works[i];
        if (work.num_heads == layer.num_heads && work.num_kv_heads == layer.num_kv_heads &&
            work.head_dim == layer.head_dim && work.window == layer.window)
            return work;
    }
    if (num_works == works.size()) works.push_back(std::make_unique<Work>());
    Work& work = *works[num_works++];
    work.num_heads = layer.num_heads;
    work.num_kv_heads = layer.num_kv_heads;
    work.head_dim = layer.head_dim;
    work.window = layer.window;
    cut(arrays, layer, work);
    return work;
}

}  // namespace rhizome
