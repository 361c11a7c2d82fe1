// What the host and the device agree on: a word of eight codes at a time.
#ifndef MLA_MXFP4_DEQUANTIZE_GPU_SHAPE_H_
#define MLA_MXFP4_DEQUANTIZE_GPU_SHAPE_H_

#include "mxfp4_dequantize/kernel.h"

namespace mla {
namespace gpu {

constexpr int kDequantizeThreads = 256;
constexpr int kDequantizeWords = 4;  // Of a thread.

}  // namespace gpu
}  // namespace mla

#endif  // MLA_MXFP4_DEQUANTIZE_GPU_SHAPE_H_
