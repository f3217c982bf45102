#pragma once

#include "common.h"

namespace penstock {

// A packed weight matrix: what ctypes knows as engines.torch.cpu.linear._Linear. Arrays by output are padded to 32.
struct Linear {
    const void* packed;
    const float* scales;   // [outputs] of int8
    const int32_t* sums;   // [outputs] of int8: over the inputs
    const float* bias;     // [outputs] or null
    int64_t outputs, inputs;
    int32_t is_int8;
};

// Its use on `rows` rows of `dtype`. Strides are bytes.
struct LinearCall {
    const void* x;
    void* out;
    int64_t rows, x_stride, out_stride;
    int32_t dtype, adds;   // adds: to what `out` holds
    int8_t* quantized;     // scratch of int8: [rows, padded_inputs]
    float* row_scales;     // scratch of int8: [rows]
};

inline int64_t padded_inputs(const Linear& weight) { return (weight.inputs + 63) / 64 * 64; }

// What one thread of a team does. Before linear_part of int8 comes quantize_part, and a barrier.
void quantize_part(const Linear&, const LinearCall&, int thread, int threads);
void linear_part(const Linear&, const LinearCall&, int thread, int threads);

}  // namespace penstock
