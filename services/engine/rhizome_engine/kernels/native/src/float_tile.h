// The inner loops of products with float32 activations: a few rows times one panel of any floating format.
//
// Each element of the result is one chain of fused multiply-adds from the first input to the last, whatever
// the number of rows: a row's result does not depend on the others, bit for bit.
#pragma once

#include "matrix.h"

namespace rhizome {

#if RHIZOME_AVX512
constexpr int kFloatRows = 12, kFloatVectors = 2;  // 24 of 32 registers hold sums
#else
constexpr int kFloatRows = 6, kFloatVectors = 1;  // 12 of 16
#endif

// How a panel is read. `group(g)` is called before the inputs of group g, `at(k, half)` is 16 weights of input k.
template <class T>
struct DensePanel {
    const T* panel;
    void group(int64_t, int) {}
    Floats at(int64_t k, int half) const { return load(panel + k * kPanel + half * kLanes); }
};

// The pairs of a group lie in registers: `first_half` is the half of the panel that v = 0 stands for.
struct GroupedPanel {
    const float* scales;
    const float* offsets;
    Floats scale[kHalves], offset[kHalves];
    void group(int64_t g, int first_half) {
        for (int v = 0; v < kFloatVectors; ++v) {
            const int64_t at = g * kPanel + (first_half + v) * kLanes;
            scale[first_half + v] = load(scales + at);
            offset[first_half + v] = load(offsets + at);
        }
    }
};

#if RHIZOME_AVX512
inline Floats from_bytes(const uint8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline Floats from_nibbles(const uint8_t* p, int half) {
    const __m512i table = _mm512_castps_si512(
        _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));  // vpermps looks at 4 bits only
    __m512i index = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    if (half == 1) index = _mm512_srli_epi32(index, 4);
    return {_mm512_permutexvar_ps(index, _mm512_castsi512_ps(table))};
}
#else
inline Floats from_bytes(const uint8_t* p) {
    const __m128i low = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i high = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8));
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(low)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(high))};
}
inline Floats from_nibbles(const uint8_t* p, int half) {
    __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    if (half == 1) bytes = _mm_srli_epi16(bytes, 4);
    bytes = _mm_and_si128(bytes, _mm_set1_epi8(15));
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)),
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))};
}
#endif

struct Grouped8Panel : GroupedPanel {
    const uint8_t* panel;
    Floats at(int64_t k, int half) const {
        return fma(from_bytes(panel + k * kPanel + half * kLanes), scale[half], offset[half]);
    }
};

struct Grouped4Panel : GroupedPanel {
    const uint8_t* panel;
    Floats at(int64_t k, int half) const {
        return fma(from_nibbles(panel + k * (kPanel / 2), half), scale[half], offset[half]);
    }
};

constexpr int64_t kInputsPerFetch = 8;

// Inputs [begin, end) of a product, in groups of `group_size` inputs.
struct Inputs {
    int64_t begin, end, group_size;
};

// tile[R][32] = a[R][begin:end] x panel, continuing the sums in `tile` where `more` is true; `stride` is the
// distance between rows of `a`.
template <int R, class Panel>
void float_tile(Panel panel, Ahead ahead, const float* a, int64_t stride, Inputs inputs, bool more,
                float* tile) {
    for (int half = 0; half < kHalves; half += kFloatVectors) {
        Floats sums[R][kFloatVectors];
        RHIZOME_UNROLL for (int r = 0; r < R; ++r)
            RHIZOME_UNROLL for (int v = 0; v < kFloatVectors; ++v)
                sums[r][v] = more ? load(tile + r * kPanel + (half + v) * kLanes) : zeros();
        for (int64_t k = inputs.begin; k < inputs.end;) {
            const int64_t group = k / inputs.group_size;
            const int64_t group_end = (group + 1) * inputs.group_size;
            const int64_t end = group_end < inputs.end ? group_end : inputs.end;
            panel.group(group, half);
            while (k < end) {
                if (half == 0) ahead.fetch();
                const int64_t stop = k + kInputsPerFetch < end ? k + kInputsPerFetch : end;
                for (; k < stop; ++k) {
                    Floats weights[kFloatVectors];
                    RHIZOME_UNROLL for (int v = 0; v < kFloatVectors; ++v) weights[v] = panel.at(k, half + v);
                    RHIZOME_UNROLL for (int r = 0; r < R; ++r) {
                        const Floats activation = broadcast(a[r * stride + k]);
                        RHIZOME_UNROLL for (int v = 0; v < kFloatVectors; ++v)
                            sums[r][v] = fma(activation, weights[v], sums[r][v]);
                    }
                }
            }
        }
        RHIZOME_UNROLL for (int r = 0; r < R; ++r)
            RHIZOME_UNROLL for (int v = 0; v < kFloatVectors; ++v)
                store(tile + r * kPanel + (half + v) * kLanes, sums[r][v]);
    }
}

// Write inputs [begin, end) of a panel as float32 [k - begin][32].
template <class Panel>
void expand_panel(Panel panel, Inputs inputs, float* out) {
    for (int64_t k = inputs.begin; k < inputs.end;) {
        const int64_t group = k / inputs.group_size;
        const int64_t group_end = (group + 1) * inputs.group_size;
        const int64_t end = group_end < inputs.end ? group_end : inputs.end;
        for (int half = 0; half < kHalves; half += kFloatVectors) panel.group(group, half);
        for (; k < end; ++k, out += kPanel)
            for (int half = 0; half < kHalves; ++half) store(out + half * kLanes, panel.at(k, half));
    }
}

}  // namespace rhizome
