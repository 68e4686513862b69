// The logarithm of a mean of exponentials, exact to the last digits both where it is near 0 and where it is not.
#pragma once

#include "core/power.h"

namespace poolexport {

// log(mean(e^t)) from mean(e^t - 1), which keeps the digits of small t, and mean(e^t), which keeps those of others.
template <class C>
POOL_INLINE C log_mean(C mean_less_one, C mean) {
  const bool near = mean_less_one > C(-0.5);
  const C argument = near ? 1 + mean_less_one : mean;
  // What the sum lost of the mean in rounding.
  const C lost = near ? (mean_less_one - (argument - 1)) / argument : C(0);
  return log_of_normal(argument) + lost;
}

}  // namespace poolexport
