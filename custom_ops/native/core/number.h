// Numbers that attributes hold as text, because a float attribute would round them, and arithmetic that is rounded as
// it is written.
#pragma once

#include <cmath>
#include <limits>
#include <locale>
#include <sstream>
#include <string>

#include "core/operator.h"

namespace poolexport {

// The finite number that a text spells, whatever the locale of the process.
inline double number_of(const char* name, const std::string& text) {
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  double value = 0;
  if (!(stream >> value) || !(stream >> std::ws).eof() || !std::isfinite(value))
    refuse("%s must be a number, not '%s'", name, text.c_str());
  return value;
}

// A product that is rounded by itself; a compiler may fuse it with the sum it goes into otherwise.
template <class R>
inline R rounded(R x) {
  volatile R kept = x;
  return kept;
}

// Without its fraction; what has no such whole number is the smallest there is, as ONNX Runtime casts on x86.
template <class R>
inline int64_t whole(R x) {
  return x >= R(-0x1p63) && x < R(0x1p63) ? int64_t(x) : std::numeric_limits<int64_t>::min();
}

// The number that an attribute spells.
inline double number(const Attributes& attributes, const char* name) {
  return number_of(name, attributes.get<std::string>(name));
}

}  // namespace poolexport
