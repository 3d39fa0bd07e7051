// variants.PREBUILT, spelled out; a test holds the two together.
#include "combine.cuh"
#include "plain.cuh"
#include "tensor_core.cuh"
SEGSTREAM_TENSOR_CORE(attention_f16_p21_k16_v64, Half, 21, 16, 64)
SEGSTREAM_TENSOR_CORE(attention_f16_p21_k128_v64, Half, 21, 128, 64)
#if SEGSTREAM_ASYNC_COPY
SEGSTREAM_TENSOR_CORE(attention_bf16_p21_k16_v64, BFloat16, 21, 16, 64)
#endif
#if SEGSTREAM_ASYNC_COPY
SEGSTREAM_TENSOR_CORE(attention_bf16_p21_k128_v64, BFloat16, 21, 128, 64)
#endif
SEGSTREAM_COMBINE(combine_f16, Half)
SEGSTREAM_COMBINE(combine_bf16, BFloat16)
SEGSTREAM_PLAIN(plain_f32_f32, float, float)
SEGSTREAM_PLAIN(plain_f16_f16, Half, Half)
SEGSTREAM_PLAIN(plain_bf16_bf16, BFloat16, BFloat16)
