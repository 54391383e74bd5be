// Which table of kernels is in use; the processor decides at run time.
#pragma once
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace ssl_fast {

// The widest table that this processor runs, until select() chooses another.
const Kernels& active();

// Built here and runnable on this processor, narrowest first.
std::vector<std::string> instruction_sets();

// Throws std::invalid_argument for a name that instruction_sets() does not list.
void select(const std::string& name);
std::string selected();

}  // namespace ssl_fast
