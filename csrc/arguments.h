// How Python's arguments become a kernel's: an address is an int, 0 for null; a struct is the tuple
// of its fields, or None for an empty one.
#pragma once
#include <pybind11/pybind11.h>

#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/matrix.h"

namespace ssl_fast {

template <typename T>
struct Address {
  T* value = nullptr;
  operator T*() const { return value; }
};

// Several of them, from a list; they live as long as the call.
template <typename T>
struct Array {
  std::vector<T> values;
  operator const T*() const { return values.data(); }
};

// A two-dimensional tensor.
struct Pair {
  int64_t first, second;
};
struct Tensor {
  void* data;
  Pair shape, strides;
  int dtype;
  operator Matrix() const { return {data, shape.first, shape.second, strides.first, dtype}; }
};

// What stands for a kernel's parameter until the call.
template <typename T>
struct PassedAs {
  using type = T;
};
template <typename T>
struct PassedAs<T*> {
  using type = Address<T>;
};
template <>
struct PassedAs<const void* const*> {
  using type = Array<const void*>;
};
template <>
struct PassedAs<const Matrix*> {
  using type = Array<Matrix>;
};
template <>
struct PassedAs<const Targets*> {
  using type = Array<Targets>;
};
template <>
struct PassedAs<Matrix> {
  using type = Tensor;
};
template <typename T>
using Passed = typename PassedAs<std::decay_t<T>>::type;

}  // namespace ssl_fast

namespace pybind11::detail {

template <typename T>
struct type_caster<ssl_fast::Address<T>> {
  PYBIND11_TYPE_CASTER(ssl_fast::Address<T>, const_name("int"));

  bool load(handle source, bool) {
    value.value = static_cast<T*>(PyLong_AsVoidPtr(source.ptr()));
    if (value.value || !PyErr_Occurred()) return true;
    PyErr_Clear();
    return false;
  }
};

template <typename T>
struct type_caster<ssl_fast::Array<T>> {
  PYBIND11_TYPE_CASTER(ssl_fast::Array<T>, const_name("list"));

  bool load(handle source, bool convert) {
    if (!isinstance<list>(source)) return false;
    make_caster<ssl_fast::Passed<T>> one;
    for (handle item : reinterpret_borrow<list>(source)) {
      if (!one.load(item, convert)) return false;
      value.values.push_back(static_cast<ssl_fast::Passed<T>&>(one));
    }
    return true;
  }
};

template <typename Struct, auto... kFields>
struct fields_caster {
  PYBIND11_TYPE_CASTER(Struct, const_name("tuple"));

  bool load(handle source, bool convert) {
    value = {};
    if (source.is_none()) return true;
    return isinstance<tuple>(source) && PyTuple_GET_SIZE(source.ptr()) == sizeof...(kFields) &&
           load_each(source, convert, std::make_index_sequence<sizeof...(kFields)>());
  }

  static handle cast(const Struct& from, return_value_policy, handle) {
    return make_tuple(from.*kFields...).release();
  }

 private:
  template <auto kField>
  using Field = ssl_fast::Passed<decltype(std::declval<Struct>().*kField)>;

  template <size_t... I>
  bool load_each(handle source, bool convert, std::index_sequence<I...>) {
    if (!(std::get<I>(casters_).load(PyTuple_GET_ITEM(source.ptr(), I), convert) && ...))
      return false;
    ((value.*kFields = static_cast<Field<kFields>&>(std::get<I>(casters_))), ...);
    return true;
  }

  std::tuple<make_caster<Field<kFields>>...> casters_;
};

using ssl_fast::Pair, ssl_fast::Tensor, ssl_fast::Targets, ssl_fast::Stats, ssl_fast::Ranges;

template <>
struct type_caster<Pair> : fields_caster<Pair, &Pair::first, &Pair::second> {};
template <>
struct type_caster<Tensor>
    : fields_caster<Tensor, &Tensor::data, &Tensor::shape, &Tensor::strides, &Tensor::dtype> {};
template <>
struct type_caster<Targets>
    : fields_caster<Targets, &Targets::values, &Targets::scale, &Targets::row, &Targets::col> {};
template <>
struct type_caster<Stats> : fields_caster<Stats, &Stats::row, &Stats::row_stride, &Stats::col> {};
template <>
struct type_caster<Ranges> : fields_caster<Ranges, &Ranges::lo, &Ranges::hi, &Ranges::begin> {};

}  // namespace pybind11::detail
