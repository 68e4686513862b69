// Numbers written in attributes, whatever the language of the process is.
#pragma once

#include <locale>
#include <sstream>

#include "core/operator.h"

namespace poolexport {

// A decimal number with all its digits; refuses anything else.
inline double number(const Attributes& attributes, const char* name) {
  const std::string text = attributes.get<std::string>(name);
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  double value = 0;
  if (text.find_first_not_of("0123456789+-.eE") != std::string::npos || !(stream >> value) || stream.peek() != EOF)
    refuse("%s is '%s', and must be a number", name, text.substr(0, 100).c_str());
  return value;
}

}  // namespace poolexport
