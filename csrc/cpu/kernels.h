// The table of CPU kernels: kernels.cpp fills one per instruction set. No STL here: the linker may
// keep one object's copy of an inline function for all, and that copy may be the AVX-512 one.
#pragma once

namespace ssl_fast {

struct Kernels {};

namespace baseline { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }

}  // namespace ssl_fast
