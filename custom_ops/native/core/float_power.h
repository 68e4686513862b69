// Powers of float with one exponent, as vector code of float alone.
#pragma once

#include "core/power.h"

namespace poolexport {

// An exponent p that many numbers are raised to. The relative error is below 2^-24 (2 + |p| / 2).
struct FloatPower {
  float high, low;          // the exponent; a product of high and a binary exponent is not rounded
  float slope, slope_rest;  // what a natural logarithm is multiplied with to be the binary one of the power
  float at_zero, at_infinity;

  explicit FloatPower(double p) : at_zero(p > 0 ? 0.0f : __builtin_inff()), at_infinity(p > 0 ? __builtin_inff() : 0.0f) {
    high = float(p);
    high = bits_as<float>(bits_as<uint32_t>(high) & 0xffffff00u);
    low = float(p - double(high));
    slope = float(p * 1.4426950408889634);
    slope_rest = float(p * 1.4426950408889634 - double(slope));
  }

  // x^p for x that is neither 0 nor negative, nor subnormal; 0 below 2^-126, infinity above 2^127.
  POOL_INLINE float of_normal(float x) const { return of_bits(bits_as<uint32_t>(x), 0); }

  // x^p for any x that is not negative; NaN stays NaN.
  POOL_INLINE float operator()(float x) const {
    const bool tiny = x < 0x1p-126f;
    const float power = of_bits(bits_as<uint32_t>(tiny ? x * 0x1p24f : x), tiny ? -24.0f : 0.0f);
    const float infinite = x == __builtin_inff() ? at_infinity : x;
    return x == 0 ? at_zero : x < __builtin_inff() ? power : infinite;
  }

 private:
  POOL_INLINE float of_bits(uint32_t bits, float shift) const {
    const detail::Split s = detail::split(bits);
    const float exponent = s.exponent + shift, whole = high * exponent;
    // The products with f are exact where the processor fuses a product with a sum.
    const float product = slope * s.f;
    const float rest = (slope * s.f - product) + (slope * s.bend + (slope_rest * s.f + low * exponent));
    const float t = whole + (product + rest), magic = 0x1.8p23f, shifted = t + magic, n = shifted - magic;
    const float r = 0.693147181f * (((whole - n) + product) + rest);
    const float power = bits_as<float>((bits_as<uint32_t>(shifted) << 23) + (127u << 23));
    const float result = power + power * detail::expm1_series(r);
    return t > 127.0f ? __builtin_inff() : t < -126.0f ? 0.0f : result;
  }
};

}  // namespace poolexport
