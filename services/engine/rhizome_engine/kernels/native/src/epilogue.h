// What happens to a tile of products before it reaches memory: bias, activation, residual.
#pragma once

#include "matrix.h"

namespace rhizome {

inline Floats silu(Floats x) { return x / (broadcast(1.0f) + exp_within(zeros() - x)); }

inline Floats gelu_tanh(Floats x) {
    const Floats cube = x * x * x;
    const Floats inner = broadcast(0.7978845608f) * fma(broadcast(0.044715f), cube, x);
    return broadcast(0.5f) * x * (broadcast(1.0f) + tanh(inner));
}

inline Floats activate(int32_t epilogue, Floats x) { return epilogue == kSiluGated ? silu(x) : gelu_tanh(x); }

// Columns of the 16 starting at `column` that exist.
inline int present(int64_t column, int64_t columns) {
    const int64_t left = columns - column;
    return left >= kLanes ? kLanes : (left > 0 ? static_cast<int>(left) : 0);
}

inline Floats with_bias(const LinearPlan& plan, Floats v, int64_t column, int lanes) {
    if (plan.bias == nullptr) return v;
    return v + load_first(plan.bias + column, lanes);
}

// Store or add products at columns `column`... of `out` [rows, columns]; `value(row, half)` is 16 of them.
template <class Value>
void finish(const LinearPlan& plan, const Value& value, int64_t rows, int64_t column, float* out) {
    const int64_t columns = plan.weight->out_features;
    const Floats multiplier = broadcast(plan.multiplier);
    for (int half = 0; half < kHalves; ++half) {
        const int64_t first = column + half * kLanes;
        const int lanes = present(first, columns);
        if (lanes == 0) break;
        for (int64_t row = 0; row < rows; ++row) {
            const Floats v = with_bias(plan, value(row, half), first, lanes);
            float* target = out + row * columns + first;
            if (plan.epilogue == kAdd) {
                store_first(target, fma(multiplier, v, load_first(target, lanes)), lanes);
            } else {
                store_first(target, v, lanes);
            }
        }
    }
}

// Store activation(gate) * up at columns `column`... of `out` [rows, out_features / 2].
template <class Gate, class Up>
void finish_gated(const LinearPlan& plan, const Gate& gate, const Up& up, int64_t rows, int64_t column, float* out) {
    const int64_t columns = plan.weight->out_features / 2;
    for (int half = 0; half < kHalves; ++half) {
        const int64_t first = column + half * kLanes;
        const int lanes = present(first, columns);
        if (lanes == 0) break;
        for (int64_t row = 0; row < rows; ++row) {
            const Floats g = with_bias(plan, gate(row, half), first, lanes);
            const Floats u = with_bias(plan, up(row, half), columns + first, lanes);
            store_first(out + row * columns + first, activate(plan.epilogue, g) * u, lanes);
        }
    }
}

}  // namespace rhizome
