// How matrices lie in memory: panels of 32 output features, each contiguous from the first input to the last.
//
//   float32, bfloat16, float16   panel[k][column]
//   bfloat16 pairs               panel[k / 2][column][k % 2]; k padded to a multiple of 2
//   int8                         panel[k / 4][column][k % 4], q + 128 as uint8; k padded to a multiple of 4
//   grouped, 8 bits              panel[k][column], uint8
//   grouped, 4 bits              panel[k][column % 16], columns 0..15 in the low halves, 16..31 in the high ones
//
// Scales lie as [panel][group][column], one group for int8. The last panel is padded to 32 columns.
// A thread that multiplies one row reads a panel from end to end, as hardware prefetchers like it.
#pragma once

#include <cstdint>

#include "simd.h"

namespace rhizome {

constexpr int kPanel = 32;
constexpr int kHalves = kPanel / kLanes;

enum Format : int32_t { kFloat32, kBfloat16, kFloat16, kInt8, kGrouped4, kGrouped8, kBfloat16Pairs };

// Mirrored field by field in native_weight.py.
struct Matrix {
    int32_t format;
    int64_t out_features;
    int64_t in_features;
    int64_t group_size;  // in_features where the format has no groups
    uint8_t* data;
    float* scales;   // null for floating point
    float* offsets;  // null unless grouped

    int64_t panels() const { return (out_features + kPanel - 1) / kPanel; }
    int64_t groups() const { return in_features / group_size; }
    int64_t padded_k() const {
        switch (format) {
            case kInt8: return (in_features + 3) / 4 * 4;
            case kBfloat16Pairs: return (in_features + 1) / 2 * 2;
            default: return in_features;
        }
    }
    // of one panel and one input
    int64_t input_bytes() const {
        switch (format) {
            case kFloat32: return kPanel * 4;
            case kBfloat16:
            case kBfloat16Pairs:
            case kFloat16: return kPanel * 2;
            case kGrouped4: return kPanel / 2;
            default: return kPanel;
        }
    }
    int64_t panel_bytes() const { return padded_k() * input_bytes(); }
    const uint8_t* panel(int64_t index) const { return data + index * panel_bytes(); }
    const float* panel_scales(int64_t index) const { return scales + index * groups() * kPanel; }
    const float* panel_offsets(int64_t index) const { return offsets + index * groups() * kPanel; }
};

// The part of the next panel to fetch while this one is multiplied: the hardware would find out too late that
// it is wanted. `lines` of the cache, of 64 bytes, are fetched for every `kInputsPerFetch` inputs.
struct Ahead {
    const uint8_t* next;
    int64_t lines;

    void fetch() {
        for (int64_t line = 0; line < lines; ++line, next += 64)
            _mm_prefetch(reinterpret_cast<const char*>(next), _MM_HINT_T1);
    }
};

enum Epilogue : int32_t { kStore, kAdd, kSiluGated, kGeluTanhGated };

// What is done besides the product; mirrored field by field in native_kernels.py.
struct LinearPlan {
    const Matrix* weight;
    const float* bias;  // null for none
    const float* gain;  // of the RMS norm before; null for none
    float eps;
    float multiplier;  // for kAdd
    int32_t epilogue;
};

}  // namespace rhizome

#define RHIZOME_API extern "C" __attribute__((visibility("default")))

#if defined(__clang__)
#define RHIZOME_UNROLL _Pragma("unroll")
#else
#define RHIZOME_UNROLL _Pragma("GCC unroll 32")
#endif
