#include "core/operator.h"

#include <cstdarg>
#include <cstdio>

namespace poolexport {

void refuse(const char* format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  throw Refused{text};
}

std::string spelled(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + ")";
}

size_t count(const Shape& shape) {
  // The empty product first: a length of 0 makes any other harmless.
  for (int64_t length : shape)
    if (length == 0) return 0;
  uint64_t total = 1;
  for (int64_t length : shape)
    if (length < 0 || __builtin_mul_overflow(total, uint64_t(length), &total) || total > (uint64_t{1} << 58))
      refuse("a tensor of shape %s does not fit into memory", spelled(shape).c_str());
  return size_t(total);
}

}  // namespace poolexport
