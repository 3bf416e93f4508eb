// Products of small row-major matrices, for tiles that fit into the caches.
#pragma once

#include <algorithm>

#include "attention_vectors.h"

namespace rhizome {

// A panel has so many rows and vectors of columns that its sums stay in registers.
#if RHIZOME_AVX512
constexpr int kPanelRows = 6, kPanelVectors = 4;
#else
constexpr int kPanelRows = 6, kPanelVectors = 1;
#endif

// c = a b (+ c): a [kRows, depth], b [depth, kVectors * kLanes], rows `lda`, `ldb`, `ldc` apart.
template <int kRows, int kVectors, bool kAdd>
void multiply_panel(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int depth) {
    Floats sum[kRows][kVectors];
    RHIZOME_UNROLL
    for (int r = 0; r < kRows; ++r)
        RHIZOME_UNROLL
        for (int v = 0; v < kVectors; ++v) sum[r][v] = kAdd ? load(c + r * ldc + v * kLanes) : zeros();
    for (int k = 0; k < depth; ++k, b += ldb) {
        Floats column[kVectors];
        RHIZOME_UNROLL
        for (int v = 0; v < kVectors; ++v) column[v] = load(b + v * kLanes);
        RHIZOME_UNROLL
        for (int r = 0; r < kRows; ++r) {
            const Floats x = broadcast(a[r * lda + k]);
            RHIZOME_UNROLL
            for (int v = 0; v < kVectors; ++v) sum[r][v] = fma(x, column[v], sum[r][v]);
        }
    }
    RHIZOME_UNROLL
    for (int r = 0; r < kRows; ++r)
        RHIZOME_UNROLL
        for (int v = 0; v < kVectors; ++v) store(c + r * ldc + v * kLanes, sum[r][v]);
}

template <int kRows, bool kAdd>
void multiply_rows(const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int depth,
                   int vectors) {
    const int rounds = (vectors + kPanelVectors - 1) / kPanelVectors;
    for (int round = 0; round < rounds; ++round) {
        const int here = (vectors + rounds - round - 1) / (rounds - round);
        switch (here) {
            case 1: multiply_panel<kRows, 1, kAdd>(a, lda, b, ldb, c, ldc, depth); break;
#if RHIZOME_AVX512
            case 2: multiply_panel<kRows, 2, kAdd>(a, lda, b, ldb, c, ldc, depth); break;
            case 3: multiply_panel<kRows, 3, kAdd>(a, lda, b, ldb, c, ldc, depth); break;
            case 4: multiply_panel<kRows, 4, kAdd>(a, lda, b, ldb, c, ldc, depth); break;
#endif
        }
        vectors -= here;
        b += here * kLanes;
        c += here * kLanes;
    }
}

// The same for 1 to kPanelRows rows.
template <bool kAdd>
void multiply(int rows, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc, int depth,
              int vectors) {
    switch (rows) {
        case 1: return multiply_rows<1, kAdd>(a, lda, b, ldb, c, ldc, depth, vectors);
        case 2: return multiply_rows<2, kAdd>(a, lda, b, ldb, c, ldc, depth, vectors);
        case 3: return multiply_rows<3, kAdd>(a, lda, b, ldb, c, ldc, depth, vectors);
        case 4: return multiply_rows<4, kAdd>(a, lda, b, ldb, c, ldc, depth, vectors);
        case 5: return multiply_rows<5, kAdd>(a, lda, b, ldb, c, ldc, depth, vectors);
        case 6: return multiply_rows<6, kAdd>(a, lda, b, ldb, c, ldc, depth, vectors);
    }
}

}  // namespace rhizome
