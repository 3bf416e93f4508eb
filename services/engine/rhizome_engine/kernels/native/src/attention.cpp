#include "attention.h"

#include <algorithm>

#include "attention_decode.h"
#include "attention_tile.h"
#include "threads.h"

namespace rhizome {
namespace {

// Less work than this is done before other threads have woken up.
constexpr int64_t kSmallestSharedCost = 200'000;

// Add up the parts of the same queries, in the order of the keys.
void merge_parts(const Step& step, const AttentionLayer& layer, const Work& work, const Item& item,
                 const Merge& merge, float* out) {
    const int heads = merge.rows / (item.query_end - item.query_begin);
    const int first_head = item.kv_head_begin * layer.group(), padded = layer.padded_dim();
    const int64_t first_token = step.arrays.query_start[item.row] + item.query_begin;
    const int64_t stride = partial_stride(layer), part_stride = merge.rows * stride;
    for (int row = 0; row < merge.rows; ++row) {
        const float* partial = work.partials.data() + merge.offset + row * stride;
        float highest = kLowest;
        for (int part = 0; part < merge.parts; ++part)
            highest = std::max(highest, partial[part * part_stride + padded]);
        alignas(64) float sums[kMaxHeadDim];
        std::fill(sums, sums + padded, 0.0f);
        float total = 0.0f;
        for (int part = 0; part < merge.parts; ++part) {
            const float* of_part = partial + part * part_stride;
            const Floats factor = exp2_negative(broadcast(of_part[padded] - highest));
            for (int i = 0; i < padded; i += kLanes)
                store(sums + i, fma(load(of_part + i), factor, load(sums + i)));
            alignas(64) float factors[kLanes];
            store(factors, factor);
            total += of_part[padded + 1] * factors[0];
        }
        float* target = out + ((first_token + row / heads) * layer.num_heads + first_head + row % heads) *
                                  static_cast<int64_t>(layer.head_dim);
        finish_head(layer, sums, highest, total, target, nullptr);
    }
}

template <class T>
void attend(const Step& step, const AttentionLayer& layer, Work& work, const float* qkv, float* out) {
    const auto store_block = [&](int64_t index, int) {
        const StoreBlock& block = work.stores[index];
        for (int token = block.begin; token < block.end; ++token)
            store_token<T>(step, layer, qkv, token, 0, layer.num_kv_heads);
    };
    const int64_t stores = work.stores.size(), items = work.items.size();
    const bool shared = work.cost >= kSmallestSharedCost;
    const int64_t threads = shared ? num_threads() : 1;
    const auto run_item = [&](int64_t index, int) {
        const Item& item = work.items[index];
        Merge* merge = item.merge < 0 ? nullptr : &work.merges[item.merge];
        float* partial = nullptr;
        if (merge != nullptr)
            partial = work.partials.data() + merge->offset + item.part * merge->rows * partial_stride(layer);
        if (item.in_place) {
            const Item* following = index + threads < items ? &work.items[index + threads] : nullptr;
            attend_in_place<T>(step, layer, item, following, qkv, out, partial);
        } else {
            attend_tile<T>(step, layer, item, qkv, out, partial);
        }
        if (merge != nullptr && __atomic_sub_fetch(&merge->left, 1, __ATOMIC_ACQ_REL) == 0) {
            merge_parts(step, layer, work, item, *merge, out);
            merge->left = merge->parts;  // for the next layer
        }
    };
    // A row of one token stores its own key with the item that reads it: no other row may see that page.
    if (shared) {
        parallel_for(stores, store_block);
        parallel_for(items, run_item);
    } else {
        for (int64_t i = 0; i < stores; ++i) store_block(i, 0);
        for (int64_t i = 0; i < items; ++i) run_item(i, 0);
    }
}

}  // namespace
}  // namespace rhizome

#define RHIZOME_API extern "C" __attribute__((visibility("default")))

RHIZOME_API void* rhizome_attention_step_new() { return new rhizome::Step(); }

RHIZOME_API void rhizome_attention_step_free(void* step) { delete static_cast<rhizome::Step*>(step); }

// The arrays must outlive the calls of rhizome_attention_attend for this step. Returns the first row whose
// numbers do not fit together, -1 if all do.
RHIZOME_API int64_t rhizome_attention_plan(void* step, const rhizome::StepArrays* arrays) {
    return static_cast<rhizome::Step*>(step)->begin(*arrays);
}

// Compute one layer: qkv [num_tokens, (num_heads + 2 num_kv_heads) head_dim] to out [num_tokens, num_heads head_dim].
RHIZOME_API void rhizome_attention_attend(void* step, const rhizome::AttentionLayer* layer, const float* qkv,
                                          float* out) {
    auto& of_step = *static_cast<rhizome::Step*>(step);
    rhizome::Work& work = of_step.work_for(*layer);
    switch (layer->element) {
        case rhizome::Element::float32: return rhizome::attend<float>(of_step, *layer, work, qkv, out);
        case rhizome::Element::bfloat16: return rhizome::attend<rhizome::bfloat16>(of_step, *layer, work, qkv, out);
        case rhizome::Element::float16: return rhizome::attend<rhizome::float16>(of_step, *layer, work, qkv, out);
    }
}
