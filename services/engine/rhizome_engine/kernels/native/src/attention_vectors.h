// Vector arithmetic that only attention needs: 2^x, sums across lanes, transposition, pairs of vectors.
#pragma once

#include "simd.h"

// Sums stay in registers only where the loops over them are gone.
#define RHIZOME_UNROLL _Pragma("GCC unroll 16")

namespace rhizome {

// The polynomial of 2^r, |r| <= 1/2: (2^r - 1) / r fitted at Chebyshev nodes, so that 2^0 is exactly 1.
inline Floats exp2_fraction(Floats r) {
    Floats p = broadcast(0.00133908668f);
    p = fma(p, r, broadcast(0.00966637395f));
    p = fma(p, r, broadcast(0.0555035696f));
    p = fma(p, r, broadcast(0.240223482f));
    p = fma(p, r, broadcast(0.693147182f));
    return fma(p, r, broadcast(1.0f));
}

// 2^x for x <= 0, relative error below 3e-7; 0 below -126.5 (there are no normal numbers), NaN of NaN.
inline Floats exp2_negative(Floats x) {
#if RHIZOME_AVX512
    const __mmask16 kept = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(-126.5f), _CMP_NLE_UQ);  // NaN is kept
    const Floats n = round_even(x);
    return {_mm512_maskz_scalef_ps(kept, exp2_fraction(x - n).v, n.v)};
#else
    const Floats inside = max(broadcast(-127.0f), x);  // NaN passes: it is the second operand
    const Floats n = round_even(inside);
    return exp2_fraction(inside - n) * power_of_two(n);  // 2^-127 has the exponent field 0: the number 0
#endif
}

// What scores are multiplied with, so that the softmax is one of powers of two.
constexpr float kLog2e = 1.44269504f;
// Below every score and finite, so that differences are never NaN.
constexpr float kLowest = -1e30f;

// 16 consecutive numbers, beginning with `first`.
inline Floats count_from(float first) {
    alignas(64) static const float kCount[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return load(kCount) + broadcast(first);
}

// Fetch elements into the second cache: more lines can be under way to it than to the first, which is near enough.
template <class T>
inline void prefetch(const T* first, int elements) {
    constexpr int kLine = 64 / sizeof(T);
    for (int i = 0; i < elements; i += kLine) _mm_prefetch(reinterpret_cast<const char*>(first + i), _MM_HINT_T1);
}

// Two vectors' worth of elements, in an order that is cheap to load: narrow elements need not be spread out
// when the even and the odd ones are taken from a register by a shift and a mask.
template <class T>
inline void load_pair(const T* p, Floats& first, Floats& second) {
    first = load(p);
    second = load(p + kLanes);
}

#if RHIZOME_AVX512

inline void load_pair(const bfloat16* p, Floats& even, Floats& odd) {
    const __m512i both = _mm512_loadu_si512(p);
    even.v = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd.v = _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

inline void deinterleave(Floats& a, Floats& b) {
    const __m512i step = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512 even = _mm512_permutex2var_ps(a.v, step, b.v);
    b.v = _mm512_permutex2var_ps(a.v, _mm512_or_si512(step, _mm512_set1_epi32(1)), b.v);
    a.v = even;
}

inline void interleave(Floats& even, Floats& odd) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512 first = _mm512_permutex2var_ps(even.v, low, odd.v);
    odd.v = _mm512_permutex2var_ps(even.v, _mm512_add_epi32(low, _mm512_set1_epi32(8)), odd.v);
    even.v = first;
}

inline __m256 fold(Floats a) {
    return _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
}

// Column i of the 16 x 16 matrix becomes vector i.
inline void transpose(Floats* x) {
    __m512 t[16], u[16];
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_ps(x[2 * i].v, x[2 * i + 1].v);
        t[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i].v, x[2 * i + 1].v);
    }
    for (int i = 0; i < 4; ++i) {  // u[4 i + c]: columns c, c + 4, c + 8, c + 12 of rows 4 i .. 4 i + 3
        for (int j = 0; j < 2; ++j) {
            const __m512d a = _mm512_castps_pd(t[4 * i + j]), b = _mm512_castps_pd(t[4 * i + 2 + j]);
            u[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            u[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
    for (int c = 0; c < 4; ++c) {
        const __m512 low02 = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88);
        const __m512 low13 = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xdd);
        const __m512 high02 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88);
        const __m512 high13 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xdd);
        x[c].v = _mm512_shuffle_f32x4(low02, high02, 0x88);
        x[8 + c].v = _mm512_shuffle_f32x4(low02, high02, 0xdd);
        x[4 + c].v = _mm512_shuffle_f32x4(low13, high13, 0x88);
        x[12 + c].v = _mm512_shuffle_f32x4(low13, high13, 0xdd);
    }
}

#else

inline void load_pair(const bfloat16* p, Floats& even, Floats& odd) {
    const __m256i* both = reinterpret_cast<const __m256i*>(p);
    const __m256i low = _mm256_loadu_si256(both), high = _mm256_loadu_si256(both + 1);
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
    even = {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
    odd = {_mm256_castsi256_ps(_mm256_and_si256(low, upper)), _mm256_castsi256_ps(_mm256_and_si256(high, upper))};
}

inline __m256 in_order(__m256 quarters) {
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(quarters), 0xd8));
}

inline void deinterleave(Floats& a, Floats& b) {
    const Floats first = a, second = b;
    a = {in_order(_mm256_shuffle_ps(first.low, first.high, 0x88)),
         in_order(_mm256_shuffle_ps(second.low, second.high, 0x88))};
    b = {in_order(_mm256_shuffle_ps(first.low, first.high, 0xdd)),
         in_order(_mm256_shuffle_ps(second.low, second.high, 0xdd))};
}

inline Floats zip(__m256 even, __m256 odd) {
    const __m256 low = _mm256_unpacklo_ps(even, odd), high = _mm256_unpackhi_ps(even, odd);
    return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
}

inline void interleave(Floats& even, Floats& odd) {
    const Floats first = zip(even.low, odd.low);
    odd = zip(even.high, odd.high);
    even = first;
}

inline __m256 fold(Floats a) { return _mm256_add_ps(a.low, a.high); }

inline void transpose8(__m256* x) {
    __m256 t[8], u[8];
    for (int i = 0; i < 4; ++i) {
        t[2 * i] = _mm256_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 2; ++j) {
            u[4 * i + 2 * j] = _mm256_shuffle_ps(t[4 * i + j], t[4 * i + 2 + j], 0x44);
            u[4 * i + 2 * j + 1] = _mm256_shuffle_ps(t[4 * i + j], t[4 * i + 2 + j], 0xee);
        }
    }
    for (int c = 0; c < 4; ++c) {
        x[c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x20);
        x[4 + c] = _mm256_permute2f128_ps(u[c], u[4 + c], 0x31);
    }
}

// Column i of the 16 x 16 matrix becomes vector i.
inline void transpose(Floats* x) {
    __m256 block[2][2][8];  // [rows / 8][columns / 8]
    for (int i = 0; i < 16; ++i) {
        block[i / 8][0][i % 8] = x[i].low;
        block[i / 8][1][i % 8] = x[i].high;
    }
    for (int i = 0; i < 4; ++i) transpose8(block[i / 2][i % 2]);
    for (int i = 0; i < 16; ++i) x[i] = {block[0][i / 8][i % 8], block[1][i / 8][i % 8]};
}

#endif

// The sums of four vectors' lanes.
inline __m128 sum_lanes(Floats a, Floats b, Floats c, Floats d) {
    const __m256 fa = fold(a), fb = fold(b), fc = fold(c), fd = fold(d);
    const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(fa, fb), _mm256_unpackhi_ps(fa, fb));
    const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(fc, fd), _mm256_unpackhi_ps(fc, fd));
    const __m256 all = _mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

// Bring vectors into the order in which load_pair gives elements of T, and back; only bfloat16 has its own.
template <class T>
inline void to_pair_order(float*, int) {}
template <>
inline void to_pair_order<bfloat16>(float* x, int pairs) {
    for (int i = 0; i < pairs; ++i, x += 2 * kLanes) {
        Floats a = load(x), b = load(x + kLanes);
        deinterleave(a, b);
        store(x, a);
        store(x + kLanes, b);
    }
}
template <class T>
inline void from_pair_order(float*, int) {}
template <>
inline void from_pair_order<bfloat16>(float* x, int pairs) {
    for (int i = 0; i < pairs; ++i, x += 2 * kLanes) {
        Floats a = load(x), b = load(x + kLanes);
        interleave(a, b);
        store(x, a);
        store(x + kLanes, b);
    }
}

}  // namespace rhizome
