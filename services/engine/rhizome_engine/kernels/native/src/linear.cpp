// Linear layers: norm, quantisation, product and what follows it, in two passes over the threads.
#include <algorithm>
#include <array>
#include <utility>

#include "bfloat16_tile.h"
#include "epilogue.h"
#include "float_tile.h"
#include "int8_tile.h"
#include "matrix.h"
#include "rows.h"
#include "threads.h"

namespace rhizome {
namespace {

// Scratch slots, of the calling thread and of each thread that takes part.
enum : int { kActivations, kTiles, kExpanded, kWhole };

constexpr int64_t kRowsAtOnce = 512;      // activations of so many rows are prepared before they are multiplied
constexpr int64_t kRowsPerTask = 128;     // their tile of 16 KiB stays in the nearest cache
constexpr int64_t kTaskBytes = 384 << 10;  // so much of the activations stays in the second cache, beside a panel
constexpr int64_t kInputsPerBlock = 2048;  // a panel of so many float32 inputs, 256 KiB, stays in the second
constexpr int64_t kSerialElements = 4096;  // below, waking threads costs more than preparing the rows

// Call body(first row, rows, block, blocks) for blocks of at most `most` rows, as even as can be.
template <class Body>
void for_each_block(int64_t rows, int64_t most, const Body& body) {
    const int64_t blocks = (rows + most - 1) / most;
    int64_t first = 0;
    for (int64_t block = 0; block < blocks; ++block) {
        const int64_t size = (rows - first + blocks - block - 1) / (blocks - block);
        body(first, size, block, blocks);
        first += size;
    }
}

template <class Body>
void for_each_row(int64_t rows, int64_t elements_per_row, const Body& body) {
    if (rows * elements_per_row <= kSerialElements) {
        for (int64_t row = 0; row < rows; ++row) body(row);
    } else {
        const int64_t each = std::max<int64_t>(1, 1024 / elements_per_row);
        parallel_for((rows + each - 1) / each, [&](int64_t index, int) {
            for (int64_t row = index * each; row < std::min(rows, (index + 1) * each); ++row) body(row);
        });
    }
}

// The share of one of several blocks of rows in fetching `bytes` of the next panel, in so many fetches.
Ahead share_of_next(const uint8_t* next, int64_t bytes, int64_t fetches, int64_t part, int64_t parts) {
    const int64_t lines = (bytes + 64 * fetches * parts - 1) / (64 * fetches * parts);
    return {next + part * fetches * lines * 64, lines};
}

template <template <int> class Tile, int... R>
constexpr auto tile_table(std::integer_sequence<int, R...>) {
    return std::array{&Tile<R + 1>::run...};
}

template <int R>
struct Int8Tile {
    static void run(const uint8_t* panel, Ahead ahead, const QuantisedActivation* a, int64_t stride, int64_t quads,
                    const int32_t* starts, int32_t* tile) {
        int8_tile<R>(panel, ahead, a, stride, quads, starts, tile);
    }
};

constexpr auto kInt8Tiles = tile_table<Int8Tile>(std::make_integer_sequence<int, kInt8Rows>());

// Activations as integers times int8 weights.
class Int8Product {
   public:
    using Element = int32_t;

    Int8Product(const LinearPlan& plan, const float* x, int64_t rows) : weight_(*plan.weight) {
        const int64_t size = weight_.in_features;
        stride_ = (size + 63) / 64 * 64;
        const int64_t quantised_bytes = rows * stride_ * static_cast<int64_t>(sizeof(QuantisedActivation));
        const int64_t header_bytes = (rows * 8 + 63) / 64 * 64;
        uint8_t* memory = static_cast<uint8_t*>(thread_scratch(kActivations, header_bytes + quantised_bytes));
        scales_ = reinterpret_cast<float*>(memory);
        starts_ = reinterpret_cast<int32_t*>(memory + rows * 4);
        quantised_ = reinterpret_cast<QuantisedActivation*>(memory + header_bytes);
        for_each_row(rows, size, [&](int64_t row) {
            const float* source = x + row * size;
            if (plan.gain != nullptr) {
                float* normalised = static_cast<float*>(thread_scratch(kTiles, size * 4));
                normalise_row(source, size, plan.gain, plan.eps, normalised);
                source = normalised;
            }
            const int32_t sum = quantise_row(source, size, quantised_ + row * stride_, scales_ + row);
            starts_[row] = -128 * sum;
        });
    }

    // tile[rows][32] = the product of rows `first`... and a panel; `next` is the panel that will follow.
    void multiply(int64_t panel, int64_t next, int64_t first, int64_t rows, Element* tile) const {
        const int64_t quads = weight_.padded_k() / 4;
        const int64_t fetches = (quads + kQuadsPerFetch - 1) / kQuadsPerFetch;
        for_each_block(rows, kInt8Rows, [&](int64_t begin, int64_t count, int64_t block, int64_t blocks) {
            const Ahead ahead = share_of_next(weight_.panel(next), weight_.panel_bytes(), fetches, block, blocks);
            const int64_t row = first + begin;
            kInt8Tiles[count - 1](weight_.panel(panel), ahead, quantised_ + row * stride_, stride_, quads,
                                  starts_ + row, tile + begin * kPanel);
        });
    }

    // What turns elements of such a tile into products.
    auto values(int64_t panel, int64_t first, const Element* tile) const {
        return [=, weight_scales = weight_.panel_scales(panel), scales = scales_ + first](int64_t row, int half) {
            const Floats sum = from_integers(tile + row * kPanel + half * kLanes);
            return sum * load(weight_scales + half * kLanes) * broadcast(scales[row]);
        };
    }

    static constexpr int64_t kActivationBytes = sizeof(QuantisedActivation);

   private:
    const Matrix& weight_;
    int64_t stride_;
    float* scales_;
    int32_t* starts_;
    QuantisedActivation* quantised_;
};

#if RHIZOME_BFLOAT16

template <int R>
struct Bfloat16Tile {
    static void run(const uint8_t* panel, Ahead ahead, const bfloat16* a, int64_t stride, int64_t pairs, bool more,
                    float* tile) {
        bfloat16_tile<R>(panel, ahead, a, stride, pairs, more, tile);
    }
};

constexpr auto kBfloat16Tiles = tile_table<Bfloat16Tile>(std::make_integer_sequence<int, kBfloat16Rows>());

// Activations rounded to bfloat16 times pairs of bfloat16 weights; sums are float32.
class Bfloat16Product {
   public:
    using Element = float;

    Bfloat16Product(const LinearPlan& plan, const float* x, int64_t rows) : weight_(*plan.weight) {
        const int64_t size = weight_.in_features;
        stride_ = (size + 31) / 32 * 32;
        rounded_ = static_cast<bfloat16*>(thread_scratch(kActivations, rows * stride_ * kActivationBytes));
        for_each_row(rows, size, [&](int64_t row) {
            bfloat16* target = rounded_ + row * stride_;
            if (plan.gain == nullptr) {
                round_row(x + row * size, size, target);
            } else {
                normalise_row(x + row * size, size, plan.gain, plan.eps, target);
            }
            if (size % 2 == 1) target[size] = {0};  // what was there may be NaN, which the weight 0 does not undo
        });
    }

    void multiply(int64_t panel, int64_t next, int64_t first, int64_t rows, Element* tile) const {
        const int64_t pairs = weight_.padded_k() / 2;
        for (int64_t begin = 0; begin < pairs; begin += kInputsPerBlock) {  // a pair takes as much as one float32
            const int64_t count = std::min(kInputsPerBlock, pairs - begin);
            const int64_t fetches = (count + kPairsPerFetch - 1) / kPairsPerFetch;
            const uint8_t* weights = weight_.panel(panel) + begin * kPairBytes;
            const uint8_t* following = weight_.panel(next) + begin * kPairBytes;
            for_each_block(rows, kBfloat16Rows, [&](int64_t row, int64_t each, int64_t block, int64_t blocks) {
                const Ahead ahead = share_of_next(following, count * kPairBytes, fetches, block, blocks);
                const bfloat16* a = rounded_ + (first + row) * stride_ + begin * 2;
                kBfloat16Tiles[each - 1](weights, ahead, a, stride_, count, begin > 0, tile + row * kPanel);
            });
        }
    }

    auto values(int64_t, int64_t, const Element* tile) const {
        return [=](int64_t row, int half) { return load(tile + row * kPanel + half * kLanes); };
    }

    static constexpr int64_t kActivationBytes = sizeof(bfloat16);

   private:
    const Matrix& weight_;
    int64_t stride_;
    bfloat16* rounded_;
};

#endif

// float32 activations times weights of any floating format, grouped integers included.
template <class Panel>
class FloatProduct {
   public:
    using Element = float;

    FloatProduct(const LinearPlan& plan, const float* x, int64_t rows) : weight_(*plan.weight), activations_(x) {
        if (plan.gain == nullptr) return;
        const int64_t size = weight_.in_features;
        float* normalised = static_cast<float*>(thread_scratch(kActivations, rows * size * 4));
        for_each_row(rows, size, [&](int64_t row) {
            normalise_row(x + row * size, size, plan.gain, plan.eps, normalised + row * size);
        });
        activations_ = normalised;
    }

    void multiply(int64_t panel, int64_t next, int64_t first, int64_t rows, Element* tile) const {
        const int64_t size = weight_.in_features;
        for (int64_t begin = 0; begin < size; begin += kInputsPerBlock) {
            const int64_t end = std::min(size, begin + kInputsPerBlock);
            const Inputs inputs{begin, end, weight_.group_size};
            const int64_t input_bytes = weight_.input_bytes();
            const Next following{weight_.panel(next) + begin * input_bytes, (end - begin) * input_bytes};
            const float* a = activations_ + first * size;
            if (std::is_same_v<Panel, DensePanel<float>> || rows <= kFloatRows) {
                multiply_block(open_panel(panel), following, a, inputs, rows, begin > 0, tile);
            } else {
                float* expanded =
                    static_cast<float*>(thread_scratch(kExpanded, kInputsPerBlock * kPanel * sizeof(float)));
                expand_panel(open_panel(panel), inputs, expanded);
                const Inputs rebased{0, end - begin, end - begin};
                multiply_block(DensePanel<float>{expanded}, following, a + begin, rebased, rows, begin > 0, tile);
            }
        }
    }

    auto values(int64_t, int64_t, const Element* tile) const {
        return [=](int64_t row, int half) { return load(tile + row * kPanel + half * kLanes); };
    }

    static constexpr int64_t kActivationBytes = sizeof(float);

   private:
    struct Next {
        const uint8_t* start;
        int64_t bytes;
    };

    template <class OpenPanel>
    void multiply_block(OpenPanel panel, Next next, const float* a, Inputs inputs, int64_t rows, bool more,
                        float* tile) const {
        const int64_t stride = weight_.in_features;
        const int64_t fetches = (inputs.end - inputs.begin + kInputsPerFetch - 1) / kInputsPerFetch;
        for_each_block(rows, kFloatRows, [&](int64_t begin, int64_t count, int64_t block, int64_t blocks) {
            const Ahead ahead = share_of_next(next.start, next.bytes, fetches, block, blocks);
            const auto multiply_rows = tiles<OpenPanel>[count - 1];
            multiply_rows(panel, ahead, a + begin * stride, stride, inputs, more, tile + begin * kPanel);
        });
    }

    Panel open_panel(int64_t index) const {
        Panel panel{};
        panel.panel = reinterpret_cast<decltype(panel.panel)>(weight_.panel(index));
        if constexpr (std::is_base_of_v<GroupedPanel, Panel>) {
            panel.scales = weight_.panel_scales(index);
            panel.offsets = weight_.panel_offsets(index);
        }
        return panel;
    }

    template <class OpenPanel, int... R>
    static constexpr auto make_tiles(std::integer_sequence<int, R...>) {
        return std::array{&float_tile<R + 1, OpenPanel>...};
    }
    template <class OpenPanel>
    static constexpr auto tiles = make_tiles<OpenPanel>(std::make_integer_sequence<int, kFloatRows>());

    const Matrix& weight_;
    const float* activations_;
};

// How the tiles of a product are dealt out: each task is some panels times some rows. Tasks of the same rows
// follow each other, as activations are used again sooner than weights.
struct Tasks {
    int64_t panels_each, panel_tasks, rows_each, row_tasks;

    Tasks(int64_t panels, int64_t rows, int64_t row_bytes) {
        const int64_t wanted = num_threads() == 1 ? 1 : num_threads() * 16;
        panels_each = std::max<int64_t>(1, panels / (wanted * 2));
        panel_tasks = (panels + panels_each - 1) / panels_each;
        const int64_t most = std::clamp<int64_t>(kTaskBytes / row_bytes, 2 * kFloatRows, kRowsPerTask);
        row_tasks = (rows + most - 1) / most;
        // Few panels and many rows: split the rows as well, but not below what two tiles hold.
        while (panel_tasks * row_tasks < wanted && rows > row_tasks * 2 * kFloatRows) ++row_tasks;
        rows_each = (rows + row_tasks - 1) / row_tasks;
        row_tasks = (rows + rows_each - 1) / rows_each;
    }
};

template <class Product>
void run_product(const LinearPlan& plan, const float* x, int64_t rows, float* out) {
    using Element = typename Product::Element;
    const Matrix& weight = *plan.weight;
    const bool gated = plan.epilogue == kSiluGated || plan.epilogue == kGeluTanhGated;
    const int64_t columns = gated ? weight.out_features / 2 : weight.out_features;
    const int64_t panels = (columns + kPanel - 1) / kPanel;
    const Product product(plan, x, rows);
    const Tasks tasks(panels, rows, weight.in_features * Product::kActivationBytes);
    parallel_for(tasks.panel_tasks * tasks.row_tasks, [&](int64_t index, int) {
        const int64_t first = index / tasks.panel_tasks * tasks.rows_each;
        const int64_t count = std::min(tasks.rows_each, rows - first);
        const int64_t begin = index % tasks.panel_tasks * tasks.panels_each;
        const int64_t end = std::min(panels, begin + tasks.panels_each);
        // The other threads will most likely take a task each before this one takes another.
        const int64_t likely = std::min(panels - 1, begin + tasks.panels_each * num_threads());
        const int64_t tile_size = kRowsPerTask * kPanel;
        Element* tile = static_cast<Element*>(thread_scratch(kTiles, 2 * tile_size * sizeof(Element)));
        float* target = out + first * columns;
        for (int64_t panel = begin; panel < end; ++panel) {
            const int64_t next = panel + 1 < end ? panel + 1 : likely;
            const auto values = product.values(panel, first, tile);
            if (gated) {
                product.multiply(panel, panels + panel, first, count, tile);
                product.multiply(panels + panel, next, first, count, tile + tile_size);
                const auto up = product.values(panels + panel, first, tile + tile_size);
                finish_gated(plan, values, up, count, panel * kPanel, target);
            } else {
                product.multiply(panel, next, first, count, tile);
                finish(plan, values, count, panel * kPanel, target);
            }
        }
    });
}

void run_rows(const LinearPlan& plan, const float* x, int64_t rows, float* out) {
    switch (plan.weight->format) {
        case kFloat32: return run_product<FloatProduct<DensePanel<float>>>(plan, x, rows, out);
        case kBfloat16: return run_product<FloatProduct<DensePanel<bfloat16>>>(plan, x, rows, out);
        case kFloat16: return run_product<FloatProduct<DensePanel<float16>>>(plan, x, rows, out);
        case kInt8: return run_product<Int8Product>(plan, x, rows, out);
        case kGrouped4: return run_product<FloatProduct<Grouped4Panel>>(plan, x, rows, out);
        case kGrouped8: return run_product<FloatProduct<Grouped8Panel>>(plan, x, rows, out);
#if RHIZOME_BFLOAT16
        case kBfloat16Pairs: return run_product<Bfloat16Product>(plan, x, rows, out);
#endif
    }
}

// The gate's last panel holds columns of `up` as well: multiply to memory first, then combine.
void run_unaligned_gated(const LinearPlan& plan, const float* x, int64_t rows, float* out) {
    const int64_t columns = plan.weight->out_features / 2;
    LinearPlan whole = plan;
    whole.epilogue = kStore;
    float* both = static_cast<float*>(thread_scratch(kWhole, rows * columns * 2 * sizeof(float)));
    run_rows(whole, x, rows, both);
    for_each_row(rows, columns, [&](int64_t row) {
        const float* gate = both + row * columns * 2;
        for (int64_t column = 0; column < columns; column += kLanes) {
            const int lanes = present(column, columns);
            const Floats up = load_first(gate + columns + column, lanes);
            const Floats active = activate(plan.epilogue, load_first(gate + column, lanes));
            store_first(out + row * columns + column, active * up, lanes);
        }
    });
}

}  // namespace
}  // namespace rhizome

// Whether products with bfloat16 pairs were compiled in.
RHIZOME_API int rhizome_has_bfloat16() { return RHIZOME_BFLOAT16; }

// out[rows, out_features] = epilogue(norm(x) @ weight.T + bias); half as wide where the epilogue is gated.
RHIZOME_API void rhizome_linear(const rhizome::LinearPlan* plan, const float* x, int64_t rows, float* out) {
    using namespace rhizome;
    const Matrix& weight = *plan->weight;
    const bool gated = plan->epilogue == kSiluGated || plan->epilogue == kGeluTanhGated;
    const int64_t out_width = gated ? weight.out_features / 2 : weight.out_features;
    const auto run = gated && out_width % kPanel != 0 ? run_unaligned_gated : run_rows;
    for (int64_t row = 0; row < rows; row += kRowsAtOnce) {
        const int64_t count = std::min(kRowsAtOnce, rows - row);
        run(*plan, x + row * weight.in_features, count, out + row * out_width);
    }
}

// residual[rows, size] += multiplier * norm(x)
RHIZOME_API void rhizome_add_norm(float* residual, const float* x, const float* gain, float eps, float multiplier,
                                  int64_t rows, int64_t size) {
    using namespace rhizome;
    for_each_row(rows, size, [&](int64_t row) {
        const float* source = x + row * size;
        float* target = residual + row * size;
        const Floats factor = broadcast(inverse_rms(source, size, eps));
        for (int64_t i = 0; i < size; i += kLanes) {
            const int lanes = present(i, size);
            const Floats normalised = load_first(source + i, lanes) * factor * load_first(gain + i, lanes);
            store_first(target + i, fma(broadcast(multiplier), normalised, load_first(target + i, lanes)), lanes);
        }
    });
}
