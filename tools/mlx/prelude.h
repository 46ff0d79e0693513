// Put in front of every file of mlx-c, which is written for macOS first.
#pragma once

#ifdef __cplusplus
// GCC 12's library, Debian 12's, has no <format>; libfmt is where the standard took it from.
#if __has_include(<format>)
#include <format>
#else
#include <fmt/format.h>
namespace std {
using fmt::format;
}
#endif
#endif

// In place of mlx-c's half.h: that one has the half-precision accessors, which mlx-rs calls, only where the compiler has
// such types of its own. MLX's types have the same layout everywhere; to the bindings, which replace them, any will do.
#define MLX_HALF_H
#define HAS_FLOAT16
#define HAS_BFLOAT16
#ifdef __cplusplus
#include <mlx/types/half_types.h>
typedef mlx::core::float16_t float16_t;
typedef mlx::core::bfloat16_t bfloat16_t;
#else
typedef unsigned short float16_t;
typedef unsigned short bfloat16_t;
#endif
