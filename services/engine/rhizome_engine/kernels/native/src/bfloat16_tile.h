// The inner loops of products in bfloat16: a few rows of rounded activations times one panel of pairs.
//
// vdpbf16ps adds two products of bfloat16 to a float32 sum, twice what a fused multiply-add of float32 does in
// the same time. Each element of the result is one chain of these from the first pair to the last, whatever
// the number of rows: a row's result does not depend on the others, bit for bit.
#pragma once

#include "matrix.h"

#if defined(__AVX512BF16__)
#define RHIZOME_BFLOAT16 1
#else
#define RHIZOME_BFLOAT16 0
#endif

namespace rhizome {

#if RHIZOME_BFLOAT16

constexpr int kBfloat16Rows = 12;  // 24 of 32 registers hold sums
constexpr int64_t kPairsPerFetch = 8;
constexpr int64_t kPairBytes = kPanel * 4;  // of one panel

// tile[R][32] = a[R][2 * pairs] x panel, continuing the sums in `tile` where `more` is true; `stride` is the
// distance between rows of `a`.
template <int R>
void bfloat16_tile(const uint8_t* panel, Ahead ahead, const bfloat16* a, int64_t stride, int64_t pairs, bool more,
                   float* tile) {
    __m512 sums[R][kHalves];
    RHIZOME_UNROLL for (int r = 0; r < R; ++r)
        RHIZOME_UNROLL for (int h = 0; h < kHalves; ++h)
            sums[r][h] = more ? _mm512_loadu_ps(tile + r * kPanel + h * kLanes) : _mm512_setzero_ps();
    for (int64_t pair = 0; pair < pairs;) {
        ahead.fetch();
        const int64_t end = pair + kPairsPerFetch < pairs ? pair + kPairsPerFetch : pairs;
        for (; pair < end; ++pair) {
            const __m512i low = _mm512_loadu_si512(panel + pair * kPairBytes);
            const __m512i high = _mm512_loadu_si512(panel + pair * kPairBytes + 64);
            RHIZOME_UNROLL for (int r = 0; r < R; ++r) {
                int32_t two;
                memcpy(&two, a + r * stride + pair * 2, 4);
                const __m512bh activations = (__m512bh)_mm512_set1_epi32(two);
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], (__m512bh)low, activations);
                sums[r][1] = _mm512_dpbf16_ps(sums[r][1], (__m512bh)high, activations);
            }
        }
    }
    RHIZOME_UNROLL for (int r = 0; r < R; ++r)
        RHIZOME_UNROLL for (int h = 0; h < kHalves; ++h)
            _mm512_storeu_ps(tile + r * kPanel + h * kLanes, sums[r][h]);
}

#endif

}  // namespace rhizome
