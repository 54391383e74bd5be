// ssl_fast._cpu: a flat list. arguments.h says how Python passes matrices.
#include <pybind11/stl.h>

#include "arguments.h"
#include "cpu/dispatch.h"

namespace py = pybind11;
using namespace ssl_fast;

namespace pybind11::detail {

template <>
struct type_caster<Crops> : fields_caster<Crops, &Crops::x, &Crops::prototypes, &Crops::views,
                                          &Crops::samples, &Crops::dtype, &Crops::q> {};
template <>
struct type_caster<ViewStats>
    : fields_caster<ViewStats, &ViewStats::row, &ViewStats::row_stride, &ViewStats::view_stride> {};
template <>
struct type_caster<Teachers>
    : fields_caster<Teachers, &Teachers::targets, &Teachers::count, &Teachers::skip_same> {};
template <>
struct type_caster<Points> : fields_caster<Points, &Points::rows, &Points::columns, &Points::n,
                                           &Points::d, &Points::dtype> {};
template <>
struct type_caster<Diagonal> : fields_caster<Diagonal, &Diagonal::squares, &Diagonal::away> {};
template <>
struct type_caster<PairSums> : fields_caster<PairSums, &PairSums::total, &PairSums::shift> {};

}  // namespace pybind11::detail

// The kernel of the instruction set that is selected when the call comes.
template <typename Result, typename... Arguments>
static auto selected_kernel(Result (*Kernels::*kernel)(Arguments...)) {
  return [kernel](Passed<Arguments>... arguments) { return (active().*kernel)(arguments...); };
}

PYBIND11_MODULE(_cpu, m) {
  m.def("instruction_sets", &instruction_sets);
  m.def("select", &ssl_fast::select);
  m.def("selected", &selected);
  // For memory that is about to be written: fewer page faults.
  m.def("advise_huge_pages", [](Address<void> data, int64_t bytes, int64_t least) {
    advise_huge_pages(data, bytes, least);
  });

  const auto kernel = [&](const char* name, auto member) {
    m.def(name, selected_kernel(member), py::call_guard<py::gil_scoped_release>());
  };
  kernel("sinkhorn", &Kernels::sinkhorn);
  kernel("sinkhorn_step", &Kernels::sinkhorn_step);
  kernel("row_potential", &Kernels::row_potential);
  kernel("centered", &Kernels::centered);
  kernel("evaluate", &Kernels::evaluate);
  kernel("cross_entropy_forward", &Kernels::cross_entropy_forward);
  kernel("cross_entropy_backward", &Kernels::cross_entropy_backward);
  kernel("cross_entropy_at_once", &Kernels::cross_entropy_at_once);
  kernel("token_weights", &Kernels::token_weights);
  kernel("prior_forward", &Kernels::prior_forward);
  kernel("prior_backward", &Kernels::prior_backward);
  kernel("crops_forward", &Kernels::crops_forward);
  kernel("crops_backward", &Kernels::crops_backward);
  kernel("column_moments", &Kernels::column_moments);
  kernel("center", &Kernels::center);
  kernel("inner", &Kernels::inner);
  kernel("squared_distance", &Kernels::squared_distance);
  kernel("triangle", &Kernels::triangle);
  kernel("covariance_gradient", &Kernels::covariance_gradient);
  kernel("cross_correlation_penalty", &Kernels::cross_correlation_penalty);
  kernel("cross_correlation_dots", &Kernels::cross_correlation_dots);
  kernel("cross_correlation_gradient", &Kernels::cross_correlation_gradient);
  kernel("cross_correlation_diagonal", &Kernels::cross_correlation_diagonal);
  kernel("cross_correlation_standardised", &Kernels::cross_correlation_standardised);
  kernel("contrastive_rows_forward", &Kernels::contrastive_rows_forward);
  kernel("contrastive_rows_backward", &Kernels::contrastive_rows_backward);
  kernel("contrastive_queue", &Kernels::contrastive_queue);
  kernel("contrastive_in_batch", &Kernels::contrastive_in_batch);
  kernel("contrastive_pairs_forward", &Kernels::contrastive_pairs_forward);
  kernel("contrastive_pairs_backward", &Kernels::contrastive_pairs_backward);
  kernel("contrastive_pairs_at_once", &Kernels::contrastive_pairs_at_once);
  kernel("pair_rows", &Kernels::pair_rows);
  kernel("pair_weights", &Kernels::pair_weights);
  kernel("pair_moments", &Kernels::pair_moments);
  kernel("few_pairs", &Kernels::few_pairs);
  kernel("distance_power", &Kernels::distance_power);
  kernel("distance_power_backward", &Kernels::distance_power_backward);
  kernel("correlation", &Kernels::correlation);
  kernel("correlation_backward", &Kernels::correlation_backward);
  kernel("lift", &Kernels::lift);
  kernel("eigen_squares", &Kernels::eigen_squares);
  kernel("weigh_rows", &Kernels::weigh_rows);
  kernel("spectral_weights", &Kernels::spectral_weights);
  kernel("column_means", &Kernels::column_means);
  kernel("subtract_mean", &Kernels::subtract_mean);
  kernel("logit_crops_forward", &Kernels::logit_crops_forward);
  kernel("logit_crops_backward", &Kernels::logit_crops_backward);
  kernel("unit_rows_forward", &Kernels::unit_rows_forward);
  kernel("unit_rows_backward", &Kernels::unit_rows_backward);
  kernel("transport", &Kernels::transport);
  kernel("transport_pairs", &Kernels::transport_pairs);
  kernel("cosine_forward", &Kernels::cosine_forward);
  kernel("cosine_backward", &Kernels::cosine_backward);
  kernel("koleo", &Kernels::koleo);
  kernel("nearest", &Kernels::nearest);
}
