// Rows into panels and back.
#include <algorithm>
#include <atomic>

#include "float_tile.h"
#include "matrix.h"
#include "threads.h"

namespace rhizome {
namespace {

// Where an element lies within its panel, in elements.
int64_t int8_offset(int64_t k, int64_t column) { return (k / 4 * kPanel + column) * 4 + k % 4; }
int64_t pair_offset(int64_t k, int64_t column) { return (k / 2 * kPanel + column) * 2 + k % 2; }

template <class T>
void pack_dense(uint8_t* panel, int64_t column, const T* row, int64_t size) {
    T* target = reinterpret_cast<T*>(panel) + column;
    for (int64_t k = 0; k < size; ++k) target[k * kPanel] = row[k];
}

void pack_row(const Matrix& matrix, int64_t index, const void* source, int64_t row) {
    const int64_t size = matrix.in_features;
    const int64_t column = index % kPanel;
    uint8_t* panel = matrix.data + index / kPanel * matrix.panel_bytes();
    const uint8_t* bytes = static_cast<const uint8_t*>(source) + row * size;
    switch (matrix.format) {
        case kFloat32: return pack_dense(panel, column, static_cast<const float*>(source) + row * size, size);
        case kBfloat16:
        case kFloat16: return pack_dense(panel, column, static_cast<const uint16_t*>(source) + row * size, size);
        case kBfloat16Pairs: {
            uint16_t* target = reinterpret_cast<uint16_t*>(panel);
            const uint16_t* elements = static_cast<const uint16_t*>(source) + row * size;
            for (int64_t k = 0; k < size; ++k) target[pair_offset(k, column)] = elements[k];
            return;
        }
        case kInt8:
            for (int64_t k = 0; k < size; ++k) panel[int8_offset(k, column)] = bytes[k] ^ 0x80;
            return;
        case kGrouped8: return pack_dense(panel, column, bytes, size);
        case kGrouped4: {
            const int shift = column < kLanes ? 0 : 4;
            uint8_t* target = panel + column % kLanes;
            for (int64_t k = 0; k < size; ++k) {
                uint8_t& pair = target[k * kLanes];
                pair = static_cast<uint8_t>((pair & (0xf0 >> shift)) | ((bytes[k] & 15) << shift));
            }
            return;
        }
    }
}

void pack_scales(const Matrix& matrix, float* target, int64_t index, const float* source, int64_t row) {
    const int64_t groups = matrix.groups();
    float* panel = target + index / kPanel * groups * kPanel + index % kPanel;
    for (int64_t group = 0; group < groups; ++group) panel[group * kPanel] = source[row * groups + group];
}

float from_bfloat16(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

// One row as float32, times `multiplier`.
void unpack_row(const Matrix& matrix, int64_t index, float multiplier, float* out) {
    const int64_t size = matrix.in_features;
    const int64_t column = index % kPanel;
    const uint8_t* panel = matrix.panel(index / kPanel);
    const float* scales = matrix.scales == nullptr ? nullptr : matrix.panel_scales(index / kPanel) + column;
    const float* offsets = matrix.offsets == nullptr ? nullptr : matrix.panel_offsets(index / kPanel) + column;
    const auto fill = [&](auto element) {
        for (int64_t k = 0; k < size; ++k) out[k] = multiplier * element(k);
    };
    const auto fill_grouped = [&](auto element) {
        for (int64_t k = 0; k < size; ++k) {
            const int64_t at = k / matrix.group_size * kPanel;
            out[k] = multiplier * std::fma(static_cast<float>(element(k)), scales[at], offsets[at]);
        }
    };
    switch (matrix.format) {
        case kFloat32:
            return fill([&](int64_t k) { return reinterpret_cast<const float*>(panel)[k * kPanel + column]; });
        case kBfloat16:
            return fill([&](int64_t k) {
                return from_bfloat16(reinterpret_cast<const uint16_t*>(panel)[k * kPanel + column]);
            });
        case kBfloat16Pairs:
            return fill([&](int64_t k) {
                return from_bfloat16(reinterpret_cast<const uint16_t*>(panel)[pair_offset(k, column)]);
            });
        case kFloat16:
            return fill([&](int64_t k) {
                return _cvtsh_ss(reinterpret_cast<const uint16_t*>(panel)[k * kPanel + column]);
            });
        case kInt8:
            return fill([&](int64_t k) { return scales[0] * (panel[int8_offset(k, column)] - 128); });
        case kGrouped8: return fill_grouped([&](int64_t k) { return panel[k * kPanel + column]; });
        case kGrouped4: {
            const int shift = column < kLanes ? 0 : 4;
            return fill_grouped([&](int64_t k) { return panel[k * kLanes + column % kLanes] >> shift & 15; });
        }
    }
}

}  // namespace
}  // namespace rhizome

// Store `count` rows at row `start`. `source` is [count, in_features] of the format's own elements: float32,
// bfloat16, float16, int8 or uint8; scales and offsets are [count, groups], null where the format has none.
RHIZOME_API void rhizome_pack(const rhizome::Matrix* matrix, int64_t start, int64_t count, const void* source,
                              const float* scales, const float* offsets) {
    using namespace rhizome;
    const int64_t first = start / kPanel;
    const int64_t last = (start + count + kPanel - 1) / kPanel;
    // One thread per panel: two columns of 4 bits share a byte.
    parallel_for(last - first, [&](int64_t each, int) {
        const int64_t begin = std::max(start, (first + each) * kPanel);
        const int64_t end = std::min(start + count, (first + each + 1) * kPanel);
        for (int64_t index = begin; index < end; ++index) {
            pack_row(*matrix, index, source, index - start);
            if (scales != nullptr) pack_scales(*matrix, matrix->scales, index, scales, index - start);
            if (offsets != nullptr) pack_scales(*matrix, matrix->offsets, index, offsets, index - start);
        }
    });
}

// out[count, in_features] = multiplier * rows `ids`; returns 0, or -1 where an id is no row: nothing is
// written for such an id.
RHIZOME_API int rhizome_embed(const rhizome::Matrix* matrix, const int64_t* ids, int64_t count, float multiplier,
                              float* out) {
    using namespace rhizome;
    std::atomic<int> result{0};
    parallel_for(count, [&](int64_t index, int) {
        if (ids[index] < 0 || ids[index] >= matrix->out_features) {
            result.store(-1, std::memory_order_relaxed);
        } else {
            unpack_row(*matrix, ids[index], multiplier, out + index * matrix->in_features);
        }
    });
    return result.load();
}
