// What an operator's file needs: tensors, attributes, and the kernel that stands between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "core/element.h"

namespace poolexport {

using Shape = std::vector<int64_t>;
//: A length that is not known before the model runs.
constexpr int64_t UNKNOWN = -1;

// Something given cannot be computed with; the text goes to the user.
struct Refused {
  std::string reason;
};

[[noreturn]] void refuse(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string spelled(const Shape& shape);
// The number of values; refuses what does not fit into memory.
size_t count(const Shape& shape);

// An input. While shapes are inferred before any run, its data is null and lengths may be UNKNOWN.
struct Tensor {
  Type type = Type::FLOAT;
  Shape shape;
  const void* data = nullptr;

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
  size_t rank() const { return shape.size(); }
};

// The attributes of a node. What is absent is the default, or refused where there is none.
class Attributes {
 public:
  virtual ~Attributes() = default;
  virtual bool find(const char* name, int64_t& value) const = 0;
  virtual bool find(const char* name, float& value) const = 0;
  virtual bool find(const char* name, std::string& value) const = 0;
  virtual bool find(const char* name, std::vector<int64_t>& values) const = 0;
  virtual bool find(const char* name, std::vector<float>& values) const = 0;

  template <class V>
  V get(const char* name) const {
    V value{};
    if (!found(name, value)) refuse("the attribute %s is missing", name);
    return value;
  }
  template <class V>
  V get(const char* name, V fallback) const {
    V value{};
    return found(name, value) ? value : fallback;
  }

 private:
  // A list of another type is read as an empty one.
  template <class V>
  bool found(const char* name, V& value) const {
    const bool there = find(name, value);
    if (there && !empty(value)) return true;
    if (holds<int64_t>(name) || holds<float>(name) || holds<std::string>(name) || holds<std::vector<int64_t>>(name) ||
        holds<std::vector<float>>(name))
      refuse("the attribute %s is of another type than it must be", name);
    return there;
  }
  template <class V>
  bool holds(const char* name) const {
    V value{};
    return find(name, value) && !empty(value);
  }
  template <class V>
  static bool empty(const V& value) {
    if constexpr (std::is_class_v<V>) return value.empty();
    return false;
  }
};

//: More tasks than threads, so that all threads end together; the same number on every machine.
constexpr size_t TASKS = 64;

// One call of a kernel: inputs, outputs that are there to be written, and the session's threads.
class Call {
 public:
  std::vector<Tensor> inputs;
  std::vector<Shape> shapes;
  std::vector<void*> outputs;

  virtual ~Call() = default;

  // Runs work(context, task) for every task below tasks, on all threads of the session; work never throws.
  virtual void each(size_t tasks, void (*work)(void*, size_t), void* context) const = 0;

  template <class Work>
  void parallel(size_t tasks, const Work& work) const {
    each(
        tasks, [](void* context, size_t task) { (*static_cast<const Work*>(context))(task); },
        const_cast<Work*>(&work));
  }
  // Splits items among at most `most` tasks: work(first, last, task).
  template <class Work>
  void split(size_t items, const Work& work, size_t most = TASKS) const {
    const size_t tasks = items < most ? items : most;
    parallel(tasks, [&](size_t task) { work(items * task / tasks, items * (task + 1) / tasks, task); });
  }
  template <class T>
  T* output(size_t index = 0) const {
    return static_cast<T*>(outputs[index]);
  }
};

class Kernel {
 public:
  virtual ~Kernel() = default;
  // Shapes of the outputs; refuses inputs that do not fit. Empty where they depend on data that is not there yet.
  virtual std::vector<Shape> shapes(const std::vector<Tensor>& inputs) const = 0;
  virtual void compute(Call& call) const = 0;
};

// A word of the domain. Inputs and outputs of Type::SAME have the type of the first input, which is any of the four
// floating-point types; an input of Type::ANY has whichever type it has.
struct Operator {
  const char* name;
  std::vector<Type> inputs;
  std::vector<Type> outputs;
  std::unique_ptr<Kernel> (*create)(const Attributes&);
  size_t optional = 0;  // inputs at the end that a node need not have
};

template <class K>
std::unique_ptr<Kernel> create(const Attributes& attributes) {
  return std::make_unique<K>(attributes);
}

// All operators, as listed by CMakeLists.txt from the files of ops/.
const std::vector<const Operator*>& operators();

// Calls f with a value of the C++ type that stands for a floating-point element type.
template <class F>
void with_element(Type type, F&& f) {
  switch (type) {
    case Type::FLOAT: return f(float{});
    case Type::DOUBLE: return f(double{});
    case Type::FLOAT16: return f(Half{});
    case Type::BFLOAT16: return f(Bfloat{});
    default: refuse("values of type %d cannot be pooled", static_cast<int>(type));
  }
}

}  // namespace poolexport
