// What the inputs beside the first may look like. Lengths that are UNKNOWN suit everything.
#pragma once

#include "core/operator.h"

namespace poolexport {

inline void require_shape(const Shape& wanted, const Shape& shape, const char* name) {
  bool alike = wanted.size() == shape.size();
  for (size_t i = 0; alike && i < shape.size(); ++i)
    alike = shape[i] == wanted[i] || shape[i] == UNKNOWN || wanted[i] == UNKNOWN;
  if (!alike) refuse("%s has shape %s, and not %s", name, spelled(shape).c_str(), spelled(wanted).c_str());
}

// A vector of one number for each channel of x, or of one for all.
inline void require_per_channel(const Shape& x, const Shape& shape, const char* name) {
  if (shape.size() != 1 || (shape[0] != 1 && shape[0] != UNKNOWN && shape[0] != x[1] && x[1] != UNKNOWN))
    refuse("%s has shape %s, and needs one entry, or one for each channel of %s", name, spelled(shape).c_str(),
           spelled(x).c_str());
}

inline void require_one(const Shape& shape, const char* name) {
  for (int64_t length : shape)
    if (length != 1 && length != UNKNOWN) refuse("%s has shape %s, and must be one number", name, spelled(shape).c_str());
}

}  // namespace poolexport
