// The power of two just below a magnitude: dividing by it brings numbers near 1 and rounds none of them.
#pragma once

#include <cmath>

namespace poolexport {

// The largest power of two that is not above; 1 for 0, NaN and infinities.
inline double power_of_two(double magnitude) {
  if (!(magnitude > 0 && magnitude < __builtin_inf())) return 1;
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  return std::ldexp(1.0, exponent - 1);
}

}  // namespace poolexport
