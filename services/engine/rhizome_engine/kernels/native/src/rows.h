// One row of activations: its norm, and its rounding to integers.
#pragma once

#include <cstdint>

#include "matrix.h"

namespace rhizome {

#if RHIZOME_AVX512
using QuantisedActivation = int8_t;
#else
using QuantisedActivation = int16_t;  // AVX2 multiplies exactly in 16 bits only
#endif

// 1 / sqrt(mean(x^2) + eps)
inline float inverse_rms(const float* x, int64_t size, float eps) {
    constexpr int kChains = 4;  // one sum alone would wait for itself
    Floats sums[kChains] = {zeros(), zeros(), zeros(), zeros()};
    int64_t i = 0;
    for (; i + kChains * kLanes <= size; i += kChains * kLanes)
        RHIZOME_UNROLL for (int c = 0; c < kChains; ++c) {
            const Floats v = load(x + i + c * kLanes);
            sums[c] = fma(v, v, sums[c]);
        }
    for (; i < size; i += kLanes) {
        const Floats v = load_first(x + i, static_cast<int>(size - i < kLanes ? size - i : kLanes));
        sums[0] = fma(v, v, sums[0]);
    }
    const Floats sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    return 1.0f / std::sqrt(reduce_add(sum) / static_cast<float>(size) + eps);
}

// out = x / rms(x) * gain, in float32 or rounded to bfloat16
template <class T>
inline void normalise_row(const float* x, int64_t size, const float* gain, float eps, T* out) {
    const Floats factor = broadcast(inverse_rms(x, size, eps));
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) store(out + i, load(x + i) * factor * load(gain + i));
    if (i < size) {
        const int rest = static_cast<int>(size - i);
        store_first(out + i, load_first(x + i, rest) * factor * load_first(gain + i, rest), rest);
    }
}

inline void round_row(const float* x, int64_t size, bfloat16* out) {
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) store(out + i, load(x + i));
    if (i < size) {
        const int rest = static_cast<int>(size - i);
        store_first(out + i, load_first(x + i, rest), rest);
    }
}

// The largest |x|, compared as integers: NaN and infinity are larger than all numbers then.
class LargestMagnitude {
   public:
#if RHIZOME_AVX512
    void look_at(Floats x) { most_ = _mm512_max_epi32(most_, _mm512_castps_si512(abs(x).v)); }
    int32_t bits() const { return _mm512_reduce_max_epi32(most_); }

   private:
    __m512i most_ = _mm512_setzero_si512();
#else
    void look_at(Floats x) {
        const Floats magnitude = abs(x);
        low_ = _mm256_max_epi32(low_, _mm256_castps_si256(magnitude.low));
        high_ = _mm256_max_epi32(high_, _mm256_castps_si256(magnitude.high));
    }
    int32_t bits() const {
        alignas(32) int32_t lanes[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_max_epi32(low_, high_));
        int32_t most = 0;
        for (int32_t lane : lanes) most = lane > most ? lane : most;
        return most;
    }

   private:
    __m256i low_ = _mm256_setzero_si256(), high_ = _mm256_setzero_si256();
#endif
};

// Rounds 16 numbers at a time to integers, ties to even, and adds them up.
class Rounder {
   public:
#if RHIZOME_AVX512
    void round(Floats x, int8_t* out) {
        const __m512i rounded = _mm512_cvtps_epi32(x.v);
        sum_ = _mm512_add_epi32(sum_, rounded);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(rounded));
    }
    int32_t sum() const { return _mm512_reduce_add_epi32(sum_); }

   private:
    __m512i sum_ = _mm512_setzero_si512();
#else
    void round(Floats x, int16_t* out) {
        const __m256i low = _mm256_cvtps_epi32(x.low), high = _mm256_cvtps_epi32(x.high);
        sum_ = _mm256_add_epi32(sum_, _mm256_add_epi32(low, high));
        const __m256i packed = _mm256_packs_epi32(low, high);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permute4x64_epi64(packed, 0xd8));
    }
    int32_t sum() const {
        alignas(32) int32_t lanes[8];
        _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum_);
        int32_t total = 0;
        for (int32_t lane : lanes) total += lane;
        return total;
    }

   private:
    __m256i sum_ = _mm256_setzero_si256();
#endif
};

constexpr float kSmallest = 1e-30f;  // see weights/rounding.py, which has the same rule
constexpr int32_t kInfinityBits = 0x7f800000;

// q = round(x * 127 / absmax), ties to even; x is about scale * q. Returns the sum of q.
//
// `out` has room for `size` rounded up to a multiple of 16: pads are 0. A row with NaN or infinity gets the
// scale NaN and integers 0, so that what is computed from it is NaN as in floating point.
inline int32_t quantise_row(const float* x, int64_t size, QuantisedActivation* out, float* scale) {
    LargestMagnitude largest;
    const int64_t whole = size / kLanes * kLanes;
    const int rest = static_cast<int>(size - whole);
    for (int64_t i = 0; i < whole; i += kLanes) largest.look_at(load(x + i));
    if (rest > 0) largest.look_at(load_first(x + whole, rest));
    const int32_t bits = largest.bits();
    float absmax;
    memcpy(&absmax, &bits, 4);
    if (bits >= kInfinityBits) {
        memset(out, 0, (whole + (rest > 0 ? kLanes : 0)) * sizeof(*out));
        *scale = NAN;
        return 0;
    }
    *scale = absmax / 127.0f;
    const Floats factor = broadcast(absmax >= kSmallest ? 127.0f / absmax : 0.0f);
    Rounder rounder;
    for (int64_t i = 0; i < whole; i += kLanes) rounder.round(load(x + i) * factor, out + i);
    if (rest > 0) rounder.round(load_first(x + whole, rest) * factor, out + whole);
    return rounder.sum();
}

}  // namespace rhizome
