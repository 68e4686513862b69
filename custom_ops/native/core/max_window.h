// The largest cell of every window, for the operators that differ in how windows are padded.
#pragma once

#include "core/fold.h"

namespace poolexport {

// Writes the largest cell of every window of x; -inf where a window has none.
void max_windows(const Call& call, const Window& window);

}  // namespace poolexport
