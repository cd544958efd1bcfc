// `Vec`: sixteen floats, one for each channel of a block. All kernels compute with it.
//
// Tensors are "blocked": (batch, ceil(channels / 16), x, y, z, 16), oneDNN's nCdhw16c. The 16
// channels of a voxel are contiguous, and z is the fastest of the three spatial axes. Lanes past
// the last channel hold zeros. The vector extensions of GCC and Clang compile the code to AVX-512,
// AVX2, SSE2 or NEON: a `Vec` is one, two or four registers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "protocol.h"

namespace fast_conv3d {

#if defined(__AVX512F__)
constexpr int kRegisterFloats = 16;
#elif defined(__AVX__)
constexpr int kRegisterFloats = 8;
#else
constexpr int kRegisterFloats = 4;
#endif
constexpr int kParts = kLanes / kRegisterFloats;

typedef float Register __attribute__((vector_size(kRegisterFloats * sizeof(float))));
typedef int32_t IntRegister __attribute__((vector_size(kRegisterFloats * sizeof(int32_t))));
// A register's floats at any address.
typedef float UnalignedRegister
    __attribute__((vector_size(kRegisterFloats * sizeof(float)), aligned(4), may_alias));

// a / b, rounded up.
template <typename A, typename B>
constexpr auto ceil_div(A a, B b) {
  return (a + b - 1) / b;
}

#define FC3D_INLINE inline __attribute__((always_inline))

// Registers that belong together. Arithmetic is lane by lane; of two operands, the one with fewer
// registers is repeated. Multiply-adds are fused by the compiler (-ffp-contract=fast).
template <int N>
struct Registers {
  Register part[N];
};
using Vec = Registers<kParts>;
// Neighbouring Vecs: a processor is faster at a long chain of operations, such as ELU, if it has
// the same operation of others to do while it waits for a result. Six use AVX-512's registers well;
// without it a Vec is several registers already.
constexpr int kVecs = kParts == 1 ? 6 : 1;
using Vecs = Registers<kVecs * kParts>;

#define FC3D_BINARY(op)                                                                \
  template <int A, int B, int N = (A > B ? A : B)>                                     \
  FC3D_INLINE Registers<N> operator op(const Registers<A>& a, const Registers<B>& b) { \
    Registers<N> result;                                                               \
    _Pragma("GCC unroll 16") for (int i = 0; i < N; ++i) result.part[i] =              \
        a.part[i % A] op b.part[i % B];                                                \
    return result;                                                                     \
  }                                                                                    \
  template <int N>                                                                     \
  FC3D_INLINE Registers<N> operator op(Registers<N> a, float b) {                      \
    _Pragma("GCC unroll 16") for (int i = 0; i < N; ++i) a.part[i] = a.part[i] op b;   \
    return a;                                                                          \
  }                                                                                    \
  template <int N>                                                                     \
  FC3D_INLINE Registers<N> operator op(float a, Registers<N> b) {                      \
    _Pragma("GCC unroll 16") for (int i = 0; i < N; ++i) b.part[i] = a op b.part[i];   \
    return b;                                                                          \
  }
FC3D_BINARY(+)
FC3D_BINARY(-)
FC3D_BINARY(*)
FC3D_BINARY(/)
#undef FC3D_BINARY

FC3D_INLINE Vec operator-(Vec a) {
  for (int i = 0; i < kParts; ++i) a.part[i] = -a.part[i];
  return a;
}
FC3D_INLINE Vec& operator+=(Vec& a, Vec b) { return a = a + b; }

FC3D_INLINE Vec broadcast(float value) {
  Vec result;
  // The compiler removes the subtraction, since x - 0 == x for every x. Not 0 + x: it maps -0 to 0.
  for (int i = 0; i < kParts; ++i) result.part[i] = value - Register{};
  return result;
}
FC3D_INLINE Vec zero() { return broadcast(0.f); }

FC3D_INLINE Register load_register(const float* source) {
  return *reinterpret_cast<const UnalignedRegister*>(source);
}
// Keeps a loaded value in a register. GCC would load it anew in each multiply-add that takes it,
// and at an address that is no multiple of a register's size each load takes two accesses.
FC3D_INLINE Register in_register(Register value) {
#if defined(__x86_64__)
  asm("" : "+v"(value));
#elif defined(__aarch64__)
  asm("" : "+w"(value));
#endif
  return value;
}
FC3D_INLINE void store_register(float* target, Register value) {
  *reinterpret_cast<UnalignedRegister*>(target) = value;
}
template <typename V = Vec>
FC3D_INLINE V load(const float* source) {
  V result;
#pragma GCC unroll 16
  for (Register& part : result.part) {
    part = load_register(source);
    source += kRegisterFloats;
  }
  return result;
}
template <int N>
FC3D_INLINE void store(float* target, const Registers<N>& value) {
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) store_register(target + i * kRegisterFloats, value.part[i]);
}

// Loads the first `count` floats of `source` (0 to 16); the other lanes are zero.
FC3D_INLINE Vec load_first(const float* source, int count) {
  float lanes[kLanes] = {};
  std::memcpy(lanes, source, count * sizeof(float));
  return load(lanes);
}

// condition > 0 ? a : b, lane by lane.
template <int C, int A, int B>
FC3D_INLINE auto where_positive(const Registers<C>& condition, const Registers<A>& a,
                                const Registers<B>& b) {
  constexpr int kN = std::max({A, B, C});
  Registers<kN> result;
#pragma GCC unroll 16
  for (int i = 0; i < kN; ++i)
    result.part[i] = condition.part[i % C] > 0.f ? a.part[i % A] : b.part[i % B];
  return result;
}

// The sum of the lanes, always in the same order.
inline float lane_sum(Vec value) {
  float lanes[kLanes];
  store(lanes, value);
  for (int step = kLanes / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) lanes[i] += lanes[i + step];
  return lanes[0];
}

// Swaps the off-diagonal Step x Step blocks of each 2 Step x 2 Step square of the rows a and b.
template <int Step, int... Lane>
FC3D_INLINE void swap_blocks(Register& a, Register& b, std::integer_sequence<int, Lane...>) {
  constexpr int kN = kRegisterFloats;
#if defined(__clang__)
  const Register upper = __builtin_shufflevector(a, b, (Lane & Step ? kN + Lane - Step : Lane)...);
  b = __builtin_shufflevector(a, b, (Lane & Step ? kN + Lane : Lane + Step)...);
#else
  const Register upper =
      __builtin_shuffle(a, b, IntRegister{(Lane & Step ? kN + Lane - Step : Lane)...});
  b = __builtin_shuffle(a, b, IntRegister{(Lane & Step ? kN + Lane : Lane + Step)...});
#endif
  a = upper;
}

// The lanes of the pair (a, b) from `First` on in steps of `Step`, if Merge is false; else lanes of
// a and b in turn, from half First of them on.
template <bool Merge, int First, int... Lane>
FC3D_INLINE Register pick_lanes(Register a, Register b, std::integer_sequence<int, Lane...>) {
  constexpr int kN = kRegisterFloats;
#if defined(__clang__)
  return __builtin_shufflevector(
      a, b, (Merge ? Lane / 2 + First * kN / 2 + Lane % 2 * kN : 2 * Lane + First)...);
#else
  return __builtin_shuffle(
      a, b, IntRegister{(Merge ? Lane / 2 + First * kN / 2 + Lane % 2 * kN : 2 * Lane + First)...});
#endif
}

// Separates 32 neighbours into the even and the odd ones, and merges them again.
FC3D_INLINE void separate(Vec first, Vec second, Vec* even, Vec* odd) {
  constexpr auto kAll = std::make_integer_sequence<int, kRegisterFloats>();
  Register parts[2 * kParts];
  for (int i = 0; i < kParts; ++i) {
    parts[i] = first.part[i];
    parts[kParts + i] = second.part[i];
  }
  for (int i = 0; i < kParts; ++i) {
    even->part[i] = pick_lanes<false, 0>(parts[2 * i], parts[2 * i + 1], kAll);
    odd->part[i] = pick_lanes<false, 1>(parts[2 * i], parts[2 * i + 1], kAll);
  }
}
FC3D_INLINE void merge(Vec even, Vec odd, Vec* first, Vec* second) {
  constexpr auto kAll = std::make_integer_sequence<int, kRegisterFloats>();
  Register parts[2 * kParts];
  for (int i = 0; i < kParts; ++i) {
    parts[2 * i] = pick_lanes<true, 0>(even.part[i], odd.part[i], kAll);
    parts[2 * i + 1] = pick_lanes<true, 1>(even.part[i], odd.part[i], kAll);
  }
  for (int i = 0; i < kParts; ++i) {
    first->part[i] = parts[i];
    second->part[i] = parts[kParts + i];
  }
}

// Transposes a square matrix held in registers, one row each.
template <int Step = kRegisterFloats / 2>
FC3D_INLINE void transpose(Register (&rows)[kRegisterFloats]) {
  for (int i = 0; i < kRegisterFloats; ++i)
    if (!(i & Step))
      swap_blocks<Step>(rows[i], rows[i + Step],
                        std::make_integer_sequence<int, kRegisterFloats>());
  if constexpr (Step > 1) transpose<Step / 2>(rows);
}

// Transposes sixteen Vecs: lane i of row j becomes lane j of row i.
FC3D_INLINE void transpose_lanes(Vec (&rows)[kLanes]) {
  for (int i = 0; i < kParts; ++i)
    for (int j = i; j < kParts; ++j) {
      Register upper[kRegisterFloats], lower[kRegisterFloats];
      for (int r = 0; r < kRegisterFloats; ++r) {
        upper[r] = rows[i * kRegisterFloats + r].part[j];
        lower[r] = rows[j * kRegisterFloats + r].part[i];
      }
      transpose(upper);
      if (i != j) transpose(lower);
      for (int r = 0; r < kRegisterFloats; ++r) {
        rows[j * kRegisterFloats + r].part[i] = upper[r];
        if (i != j) rows[i * kRegisterFloats + r].part[j] = lower[r];
      }
    }
}

}  // namespace fast_conv3d
