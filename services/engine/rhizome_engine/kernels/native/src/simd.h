// Vectors of 16 floats: one AVX-512 register, or two of AVX2.
//
// Everything is inline and stateless. Conversions to bfloat16 and float16 round to the nearest, ties to even.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define RHIZOME_AVX512 1
#else
#define RHIZOME_AVX512 0
#endif

namespace rhizome {

struct bfloat16 {
    uint16_t bits;
};
struct float16 {
    uint16_t bits;
};

constexpr int kLanes = 16;

#if RHIZOME_AVX512

struct Floats {
    __m512 v;
};

inline Floats zeros() { return {_mm512_setzero_ps()}; }
inline Floats broadcast(float x) { return {_mm512_set1_ps(x)}; }

inline Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Floats load(const bfloat16* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
inline Floats load(const float16* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}

inline void store(float* p, Floats x) { _mm512_storeu_ps(p, x.v); }
inline void store(float16* p, Floats x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
inline void store(bfloat16* p, Floats x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __m512i kept = _mm512_mask_blend_epi32(nan, rounded, quiet);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

// The first `n` elements (0 <= n <= 16); the others are 0, and their memory is not touched.
inline Floats load_first(const float* p, int n) {
    if (n == kLanes) return load(p);  // masks are slow on some processors
    return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p)};
}
inline void store_first(float* p, Floats x, int n) {
    if (n == kLanes) return store(p, x);
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), x.v);
}

inline Floats operator+(Floats a, Floats b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm512_div_ps(a.v, b.v)}; }
// a * b + c, rounded once
inline Floats fma(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Of two values of which one is NaN, the second.
inline Floats max(Floats a, Floats b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Floats min(Floats a, Floats b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Floats abs(Floats a) { return {_mm512_abs_ps(a.v)}; }
inline Floats round_even(Floats a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for integral n in [-126, 127]
inline Floats power_of_two(Floats n) {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
}
// x * 2^n for such n
inline Floats times_power_of_two(Floats x, Floats n) { return {_mm512_scalef_ps(x.v, n.v)}; }
// Where a < b: yes, else no.
inline Floats select_less(Floats a, Floats b, Floats yes, Floats no) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
inline Floats from_integers(const int32_t* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }
inline float reduce_add(Floats a) { return _mm512_reduce_add_ps(a.v); }
inline float reduce_max(Floats a) { return _mm512_reduce_max_ps(a.v); }

#else

struct Floats {
    __m256 low, high;
};

inline Floats zeros() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Floats broadcast(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }

inline Floats load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline Floats load(const bfloat16* p) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(p);
    const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128(halves));
    const __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128(halves + 1));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}
inline Floats load(const float16* p) {
    const __m128i* halves = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}

inline void store(float* p, Floats x) {
    _mm256_storeu_ps(p, x.low);
    _mm256_storeu_ps(p + 8, x.high);
}
inline void store(float16* p, Floats x) {
    __m128i* halves = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(halves, _mm256_cvtps_ph(x.low, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(halves + 1, _mm256_cvtps_ph(x.high, _MM_FROUND_TO_NEAREST_INT));
}
inline __m128i round_to_bfloat16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i kept = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(kept), _mm256_extracti128_si256(kept, 1));
}
inline void store(bfloat16* p, Floats x) {
    __m128i* halves = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(halves, round_to_bfloat16(x.low));
    _mm_storeu_si128(halves + 1, round_to_bfloat16(x.high));
}

inline __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
// The first `n` elements (0 <= n <= 16); the others are 0, and their memory is not touched.
inline Floats load_first(const float* p, int n) {
    if (n == kLanes) return load(p);  // masks are slow on some processors
    return {_mm256_maskload_ps(p, first_lanes(n)), _mm256_maskload_ps(p + 8, first_lanes(n - 8))};
}
inline void store_first(float* p, Floats x, int n) {
    if (n == kLanes) return store(p, x);
    _mm256_maskstore_ps(p, first_lanes(n), x.low);
    _mm256_maskstore_ps(p + 8, first_lanes(n - 8), x.high);
}

inline Floats operator+(Floats a, Floats b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Floats operator-(Floats a, Floats b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Floats operator*(Floats a, Floats b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Floats operator/(Floats a, Floats b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
// a * b + c, rounded once
inline Floats fma(Floats a, Floats b, Floats c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
// Of two values of which one is NaN, the second.
inline Floats max(Floats a, Floats b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline Floats min(Floats a, Floats b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline Floats abs(Floats a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
inline Floats round_even(Floats a) {
    constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, kNearest), _mm256_round_ps(a.high, kNearest)};
}
inline __m256 power_of_two(__m256 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
// 2^n for integral n in [-126, 127]
inline Floats power_of_two(Floats n) { return {power_of_two(n.low), power_of_two(n.high)}; }
// x * 2^n for such n
inline Floats times_power_of_two(Floats x, Floats n) {
    return {_mm256_mul_ps(x.low, power_of_two(n.low)), _mm256_mul_ps(x.high, power_of_two(n.high))};
}
// Where a < b: yes, else no.
inline Floats select_less(Floats a, Floats b, Floats yes, Floats no) {
    return {_mm256_blendv_ps(no.low, yes.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
            _mm256_blendv_ps(no.high, yes.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
}
inline Floats from_integers(const int32_t* p) {
    const __m256i* halves = reinterpret_cast<const __m256i*>(p);
    return {_mm256_cvtepi32_ps(_mm256_loadu_si256(halves)), _mm256_cvtepi32_ps(_mm256_loadu_si256(halves + 1))};
}
inline float reduce_add(Floats a) {
    const __m256 sum8 = _mm256_add_ps(a.low, a.high);
    const __m128 sum4 = _mm_add_ps(_mm256_castps256_ps128(sum8), _mm256_extractf128_ps(sum8, 1));
    const __m128 sum2 = _mm_add_ps(sum4, _mm_movehl_ps(sum4, sum4));
    return _mm_cvtss_f32(_mm_add_ss(sum2, _mm_shuffle_ps(sum2, sum2, 1)));
}
inline float reduce_max(Floats a) {
    const __m256 max8 = _mm256_max_ps(a.low, a.high);
    const __m128 max4 = _mm_max_ps(_mm256_castps256_ps128(max8), _mm256_extractf128_ps(max8, 1));
    const __m128 max2 = _mm_max_ps(max4, _mm_movehl_ps(max4, max4));
    return _mm_cvtss_f32(_mm_max_ss(max2, _mm_shuffle_ps(max2, max2, 1)));
}

#endif

inline Floats operator-(Floats a) { return zeros() - a; }

// The first `n` elements of the narrow types (0 <= n <= 16), by way of a small buffer.
template <class T>
inline Floats load_first(const T* p, int n) {
    T buffer[kLanes] = {};
    memcpy(buffer, p, n * sizeof(T));
    return load(buffer);
}
template <class T>
inline void store_first(T* p, Floats x, int n) {
    T buffer[kLanes];
    store(buffer, x);
    memcpy(p, buffer, n * sizeof(T));
}

// e^x within 2 ulp for x in [-87.33, 88.37]; x outside is taken for the nearest of these; NaN of NaN.
//
// x = n ln 2 + r with |r| <= ln 2 / 2, where the polynomial is off from e^r by 3e-9 at most (a weighted
// least-squares fit with its first two coefficients fixed at 1).
inline Floats exp_within(Floats x) {
    const Floats inside = min(broadcast(88.37f), max(broadcast(-87.33f), x));  // NaN passes: it is the second operand
    const Floats n = round_even(inside * broadcast(1.44269504f));
    Floats r = fma(n, broadcast(-0.693145752f), inside);  // ln 2 in two parts: 0.693145752 has 15 bits only
    r = fma(n, broadcast(-1.42860682e-6f), r);
    Floats p = broadcast(0.00138145976f);
    p = fma(p, r, broadcast(0.00836871658f));
    p = fma(p, r, broadcast(0.0416683890f));
    p = fma(p, r, broadcast(0.166665211f));
    p = fma(p, r, broadcast(0.499999940f));
    p = fma(p, r, broadcast(1.0f));
    p = fma(p, r, broadcast(1.0f));
    return times_power_of_two(p, n);
}

// e^x within 2 ulp; 0 below -87.33, where float32 has no normal number, infinity above 88.37, NaN of NaN.
inline Floats exp(Floats x) {
    const Floats high = select_less(broadcast(88.37f), x, broadcast(INFINITY), exp_within(x));
    return select_less(x, broadcast(-87.33f), zeros(), high);
}

// tanh x within 4 ulp.
inline Floats tanh(Floats x) {
    const Floats one = broadcast(1.0f);
    const Floats size = min(broadcast(10.0f), abs(x));
    const Floats far = one - broadcast(2.0f) / (exp_within(size + size) + one);
    const Floats signed_far = select_less(x, zeros(), zeros() - far, far);
    // Near 0 the difference above loses digits: odd Taylor series, off by 2e-8 relative at 0.25.
    const Floats square = x * x;
    Floats p = broadcast(62.0f / 2835);
    p = fma(p, square, broadcast(-17.0f / 315));
    p = fma(p, square, broadcast(2.0f / 15));
    p = fma(p, square, broadcast(-1.0f / 3));
    p = fma(p, square, one);
    return select_less(abs(x), broadcast(0.25f), x * p, signed_far);
}

}  // namespace rhizome
