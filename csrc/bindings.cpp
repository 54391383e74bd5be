// ssl_fast._cpu. A flat list: a binding does nothing but pass pointers and sizes on.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/dispatch.h"

namespace py = pybind11;
using ssl_fast::active;

PYBIND11_MODULE(_cpu, m) {
  m.def("instruction_sets", &ssl_fast::instruction_sets);
  m.def("select", &ssl_fast::select);
  m.def("selected", &ssl_fast::selected);
}
