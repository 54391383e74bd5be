// What tests turn on the emulated machine; joins the module's sources in the emulated build.
#include <cuda_runtime.h>

extern "C" __attribute__((visibility("default"))) void emulation_set(int processors,
                                                                     int shared_per_processor,
                                                                     bool has_driver,
                                                                     bool backwards) {
  emulation::device = {processors, shared_per_processor, has_driver, backwards};
}
