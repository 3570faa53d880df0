// What the copy engine of a GPU (TMA) is told of a tensor, so that one thread can have whole boxes of it copied.
#pragma once

#include <cstdint>

namespace vtkernels::cuda {

// Boxes of `rows` rows by 64 channels of a half type: 128 bytes a row. What lies outside of the tensor arrives as zeros.
struct TensorBoxes {
  static constexpr int channels_of_box = 64;

  const void* data;
  bool bfloat16;
  int64_t channels, n, images;
  int64_t row_bytes, image_bytes;  // from row to row, from image to image: multiples of 16, as is the address of the data
  int rows;                        // of a box
};

// The same in the form of the machine.
struct alignas(128) TensorMap {
  unsigned char opaque[128];
};

}  // namespace vtkernels::cuda
