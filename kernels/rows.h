#pragma once
#include <cstdint>
#include <type_traits>

namespace shoal {

/// A view of a row-major matrix [rows, cols] whose rows lie `stride` elements apart. Owns nothing.
template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t stride = 0;

  Rows() = default;
  Rows(T* d, std::int64_t r, std::int64_t c) : data(d), rows(r), cols(c), stride(c) {}
  Rows(T* d, std::int64_t r, std::int64_t c, std::int64_t s) : data(d), rows(r), cols(c), stride(s) {}
  /// A writable view serves where a read-only one is asked for.
  template <class U>
  requires(std::is_same_v<T, const U>) Rows(const Rows<U>& o)
      : data(o.data), rows(o.rows), cols(o.cols), stride(o.stride) {}

  T* operator[](std::int64_t row) const { return data + row * stride; }
  Rows columns(std::int64_t first, std::int64_t count) const { return {data + first, rows, count, stride}; }
  Rows slice(std::int64_t first, std::int64_t count) const { return {data + first * stride, count, cols, stride}; }
};

}  // namespace shoal
