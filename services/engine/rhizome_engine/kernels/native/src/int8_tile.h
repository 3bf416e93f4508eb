// The inner loops of the int8 product: a few rows of activations times one panel.
//
// Weights lie as q + 128, because vpdpbusd multiplies unsigned by signed: each sum starts at -128 * sum(a). Sums
// are exact integers, and fit into 32 bits while in_features <= 65536.
#pragma once

#include "matrix.h"
#include "rows.h"

namespace rhizome {

#if RHIZOME_AVX512

constexpr int kInt8Rows = 12;  // 24 of 32 registers hold sums
constexpr int64_t kQuadsPerFetch = 8;

// tile[R][32] = a[R][k] x panel; `stride` is the distance between rows of `a`, `quads` is k / 4, `starts` are
// the R numbers -128 * sum(a).
//
// With one or two rows there are too few sums to hide the latency of vpdpbusd, so that each is kept in
// several registers.
template <int R>
void int8_tile(const uint8_t* panel, Ahead ahead, const int8_t* a, int64_t stride, int64_t quads,
               const int32_t* starts, int32_t* tile) {
    constexpr int kChains = R == 1 ? 4 : (R <= 4 ? 2 : 1);
    __m512i sums[kChains][R][kHalves];
    RHIZOME_UNROLL for (int c = 0; c < kChains; ++c)
        RHIZOME_UNROLL for (int r = 0; r < R; ++r)
            RHIZOME_UNROLL for (int h = 0; h < kHalves; ++h)
                sums[c][r][h] = c == 0 ? _mm512_set1_epi32(starts[r]) : _mm512_setzero_si512();
    const auto step = [&](int c, int64_t quad) {
        const __m512i low = _mm512_loadu_si512(panel + quad * 128);
        const __m512i high = _mm512_loadu_si512(panel + quad * 128 + 64);
        RHIZOME_UNROLL for (int r = 0; r < R; ++r) {
            int32_t four;
            memcpy(&four, a + r * stride + quad * 4, 4);
            const __m512i activations = _mm512_set1_epi32(four);
            sums[c][r][0] = _mm512_dpbusd_epi32(sums[c][r][0], low, activations);
            sums[c][r][1] = _mm512_dpbusd_epi32(sums[c][r][1], high, activations);
        }
    };
    for (int64_t quad = 0; quad < quads;) {
        ahead.fetch();
        const int64_t end = quad + kQuadsPerFetch < quads ? quad + kQuadsPerFetch : quads;
        for (; quad + kChains <= end; quad += kChains)
            RHIZOME_UNROLL for (int c = 0; c < kChains; ++c) step(c, quad + c);
        if constexpr (kChains > 1)
            for (; quad < end; ++quad) step(0, quad);
    }
    RHIZOME_UNROLL for (int r = 0; r < R; ++r)
        RHIZOME_UNROLL for (int h = 0; h < kHalves; ++h) {
            __m512i sum = sums[0][r][h];
            RHIZOME_UNROLL for (int c = 1; c < kChains; ++c) sum = _mm512_add_epi32(sum, sums[c][r][h]);
            _mm512_storeu_si512(tile + r * kPanel + h * kLanes, sum);
        }
}

#else

constexpr int kInt8Rows = 3;
constexpr int64_t kQuadsPerFetch = 8;

// As above, 16 columns at a time: a register of 16-bit weights holds 4 columns, and pmaddwd leaves two sums
// for each.
template <int R>
void int8_tile(const uint8_t* panel, Ahead ahead, const int16_t* a, int64_t stride, int64_t quads,
               const int32_t* starts, int32_t* tile) {
    for (int half = 0; half < kHalves; ++half) {
        const uint8_t* columns = panel + half * 64;
        __m256i sums[R][4];
        RHIZOME_UNROLL for (int r = 0; r < R; ++r)
            RHIZOME_UNROLL for (int c = 0; c < 4; ++c)
                sums[r][c] = _mm256_set1_epi64x(static_cast<uint32_t>(starts[r]));  // one of the two
        for (int64_t quad = 0; quad < quads;) {
            if (half == 0) ahead.fetch();
            const int64_t end = quad + kQuadsPerFetch < quads ? quad + kQuadsPerFetch : quads;
            for (; quad < end; ++quad) {
                __m256i activations[R];
                RHIZOME_UNROLL for (int r = 0; r < R; ++r) {
                    int64_t four;
                    memcpy(&four, a + r * stride + quad * 4, 8);
                    activations[r] = _mm256_set1_epi64x(four);
                }
                RHIZOME_UNROLL for (int c = 0; c < 4; ++c) {
                    const __m128i* bytes = reinterpret_cast<const __m128i*>(columns + quad * 128 + c * 16);
                    const __m256i weights = _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes));
                    RHIZOME_UNROLL for (int r = 0; r < R; ++r)
                        sums[r][c] = _mm256_add_epi32(sums[r][c], _mm256_madd_epi16(weights, activations[r]));
                }
            }
        }
        RHIZOME_UNROLL for (int r = 0; r < R; ++r)
            RHIZOME_UNROLL for (int c = 0; c < 4; c += 2) {
                const __m256i pairs = _mm256_hadd_epi32(sums[r][c], sums[r][c + 1]);
                int32_t* target = tile + r * kPanel + half * kLanes + c * 4;
                _mm256_storeu_si256(reinterpret_cast<__m256i*>(target), _mm256_permute4x64_epi64(pairs, 0xd8));
            }
    }
}

#endif

}  // namespace rhizome
