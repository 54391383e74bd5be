// What Python passes of matrices, on host and device alike.
#pragma once
#include <stdint.h>

namespace ssl_fast {

enum Dtype : int { kFloat32 = 0, kFloat64 = 1, kBfloat16 = 2, kFloat16 = 3 };

struct Matrix {
  void* data;  // null: absent
  int64_t rows, cols;
  int64_t stride;  // elements between rows; columns are adjacent
  int dtype;
};

// q = values where row is null, else exp(scale * values + row + col).
struct Targets {
  Matrix values;  // [N, K]
  double scale;
  const double* row;  // [N] or null
  const double* col;  // [K] or null for zeros
};

// The statistics that forward leaves for backward; LSE = shift * inv_temperature + log.
struct Stats {
  double* row;         // [4, N] shift, log, mass, loss
  int64_t row_stride;  // between the four
  double* col;         // [3, K] shift, log, mass, or null
};

// Columns lo_i <= j < hi_i of row i are left out; the tile begins at column `begin`.
struct Ranges {
  const int64_t *lo, *hi;  // [N], or null: none are
  int64_t begin;
};

}  // namespace ssl_fast
