// Where ONNX Runtime and the operators meet: it asks in C, they answer in C++, and no exception crosses.

#include <exception>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <utility>

#include "abi/ort_api.h"
#include "core/operator.h"

namespace poolexport {
namespace {

constexpr const char* OUR_DOMAIN = "poolexport";
//: Further bodies of one operator in a model are called Name_2, Name_3 and so on. A runtime that does not say which
//: names its model holds gets so many of them: every name costs it a tenth of a millisecond for each session.
constexpr int COPIES = 4;
constexpr Type ELEMENTS[] = {Type::FLOAT, Type::FLOAT16, Type::DOUBLE, Type::BFLOAT16};

ort::Api api;

// Hands a status of the runtime on to the guard below.
struct Failed {
  ort::Status* status;
};

void check(ort::Status* status) {
  if (status != nullptr) throw Failed{status};
}

// Runs a function; whatever it throws becomes a status that names the operator.
template <class F>
ort::Status* guarded(const char* name, F&& f) noexcept {
  std::string reason;
  try {
    f();
    return nullptr;
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const Refused& refused) {
    reason = refused.reason;
  } catch (const std::bad_alloc&) {
    reason = "there is no memory left";
  } catch (const std::exception& error) {
    reason = error.what();
  } catch (...) {
    reason = "an unknown error";
  }
  return api.create_status(ort::INVALID_ARGUMENT, (std::string(OUR_DOMAIN) + "::" + name + ": " + reason).c_str());
}

struct Release {
  void operator()(ort::TensorInfo* info) const { api.release(info); }
};
using Info = std::unique_ptr<ort::TensorInfo, Release>;

Tensor described(const ort::TensorInfo* info) {
  Tensor tensor;
  ort::ElementType type = ort::UNDEFINED;
  check(api.type(info, &type));
  tensor.type = static_cast<Type>(type);
  size_t rank = 0;
  check(api.rank(info, &rank));
  tensor.shape.resize(rank);
  check(api.dimensions(info, tensor.shape.data(), rank));
  return tensor;
}

class NodeAttributes final : public Attributes {
 public:
  explicit NodeAttributes(const ort::KernelInfo* info) : info_(info) {}

  bool find(const char* name, int64_t& value) const override { return there(api.attribute(info_, name, &value)); }
  bool find(const char* name, float& value) const override { return there(api.attribute(info_, name, &value)); }
  bool find(const char* name, std::string& value) const override {
    size_t size = 0;
    if (!there(api.attribute(info_, name, nullptr, &size)) || size == 0) return false;
    value.resize(size);
    if (!there(api.attribute(info_, name, value.data(), &size))) return false;
    value.resize(size - 1);
    return true;
  }
  bool find(const char* name, std::vector<int64_t>& values) const override { return list(name, values); }
  bool find(const char* name, std::vector<float>& values) const override { return list(name, values); }

 private:
  template <class V>
  bool list(const char* name, std::vector<V>& values) const {
    size_t size = 0;
    if (!there(api.attributes(info_, name, static_cast<V*>(nullptr), &size))) return false;
    values.resize(size);
    return size == 0 || there(api.attributes(info_, name, values.data(), &size));
  }
  static bool there(ort::Status* status) {
    if (status != nullptr) api.release(status);
    return status == nullptr;
  }

  const ort::KernelInfo* info_;
};

class ShapeAttributes final : public Attributes {
 public:
  explicit ShapeAttributes(const ort::ShapeContext* context) : context_(context) {}

  bool find(const char* name, int64_t& value) const override {
    return one(name, ort::INT_VALUE, &value, sizeof value);
  }
  bool find(const char* name, float& value) const override {
    return one(name, ort::FLOAT_VALUE, &value, sizeof value);
  }
  bool find(const char* name, std::string& value) const override { return list(name, ort::STRING_VALUE, value); }
  bool find(const char* name, std::vector<int64_t>& values) const override {
    return list(name, ort::INT_VALUES, values);
  }
  bool find(const char* name, std::vector<float>& values) const override {
    return list(name, ort::FLOAT_VALUES, values);
  }

 private:
  bool one(const char* name, ort::AttributeType type, void* value, size_t bytes) const {
    const ort::OpAttr* attribute = named(name);
    size_t size = 0;
    return attribute != nullptr && there(api.read(attribute, type, value, bytes, &size));
  }
  // The first call fails, and says how many bytes there are.
  template <class V>
  bool list(const char* name, ort::AttributeType type, V& values) const {
    const ort::OpAttr* attribute = named(name);
    if (attribute == nullptr) return false;
    size_t bytes = 0;
    const bool empty = there(api.read(attribute, type, nullptr, 0, &bytes));
    values.resize(bytes / sizeof(typename V::value_type));
    return empty || there(api.read(attribute, type, values.data(), bytes, &bytes));
  }
  const ort::OpAttr* named(const char* name) const {
    const ort::OpAttr* attribute = nullptr;
    return there(api.attribute(context_, name, &attribute)) ? attribute : nullptr;
  }
  static bool there(ort::Status* status) {
    if (status != nullptr) api.release(status);
    return status == nullptr;
  }

  const ort::ShapeContext* context_;
};

class RuntimeCall final : public Call {
 public:
  explicit RuntimeCall(ort::Context* context) : context_(context) {
    size_t number = 0;
    check(api.input_count(context, &number));
    for (size_t i = 0; i < number; ++i) {
      const ort::Value* value = nullptr;
      check(api.input(context, i, &value));
      if (value == nullptr) refuse("input %zu has no name", i);
      ort::TensorInfo* raw = nullptr;
      check(api.info(value, &raw));
      const Info info(raw);
      inputs.push_back(described(info.get()));
      void* data = nullptr;
      check(api.data(const_cast<ort::Value*>(value), &data));
      inputs.back().data = data;
    }
  }

  void allocate(std::vector<Shape> found) {
    shapes = std::move(found);
    for (size_t i = 0; i < shapes.size(); ++i) {
      count(shapes[i]);
      ort::Value* value = nullptr;
      void* data = nullptr;
      check(api.output(context_, i, shapes[i].data(), shapes[i].size(), &value));
      check(api.data(value, &data));
      outputs.push_back(data);
    }
  }

  void each(size_t tasks, void (*work)(void*, size_t), void* context) const override {
    if (tasks == 1)
      work(context, 0);
    else if (tasks > 1)
      check(api.parallel_for(context_, work, tasks, 0, context));
  }

 private:
  ort::Context* context_;
};

// An operator under one name, for one element type.
struct Registered : ort::CustomOp {
  const Operator* op;
  std::string called;
  Type element;

  ort::ElementType typed(Type type) const { return static_cast<ort::ElementType>(type == Type::SAME ? element : type); }
};

const Registered& of(const ort::CustomOp* op) { return *static_cast<const Registered*>(op); }

// A kernel that knows its operator, for what it has to say.
struct Placed {
  const Operator* op;
  std::unique_ptr<Kernel> kernel;
};

std::vector<Shape> shapes_of(const Placed& placed, const std::vector<Tensor>& inputs) {
  const size_t most = placed.op->inputs.size(), least = most - placed.op->optional;
  if (inputs.size() < least || inputs.size() > most)
    refuse("%zu inputs, and not %zu, are needed", least, inputs.size());
  return placed.kernel->shapes(inputs);
}

Registered registered(const Operator& op, std::string name, Type element) {
  Registered r{};
  r.op = &op;
  r.called = std::move(name);
  r.element = element;
  r.version = ort::VERSION;
  r.name = [](const ort::CustomOp* self) { return of(self).called.c_str(); };
  r.provider = [](const ort::CustomOp*) { return static_cast<const char*>(nullptr); };
  r.input_type = [](const ort::CustomOp* self, size_t i) { return of(self).typed(of(self).op->inputs[i]); };
  r.inputs = [](const ort::CustomOp* self) { return of(self).op->inputs.size(); };
  r.output_type = [](const ort::CustomOp* self, size_t i) { return of(self).typed(of(self).op->outputs[i]); };
  r.outputs = [](const ort::CustomOp* self) { return of(self).op->outputs.size(); };
  r.destroy = [](void* kernel) { delete static_cast<Placed*>(kernel); };
  r.input_characteristic = [](const ort::CustomOp* self, size_t i) {
    return i + of(self).op->optional < of(self).op->inputs.size() ? ort::REQUIRED : ort::OPTIONAL;
  };
  r.output_characteristic = [](const ort::CustomOp*, size_t) { return ort::REQUIRED; };
  r.input_memory = [](const ort::CustomOp*, size_t) { return ort::CPU; };
  r.variadic_inputs = [](const ort::CustomOp*) { return 0; };
  r.variadic_inputs_alike = [](const ort::CustomOp*) { return 1; };
  r.variadic_outputs = [](const ort::CustomOp*) { return 0; };
  r.variadic_outputs_alike = [](const ort::CustomOp*) { return 1; };
  r.first_version = [](const ort::CustomOp*) { return 1; };
  r.last_version = [](const ort::CustomOp*) { return 0x7fffffff; };
  // The first two are never called where the others are there; a null pointer would be refused.
  r.create_kernel = [](const ort::CustomOp*, const void*, const ort::KernelInfo*) { return static_cast<void*>(nullptr); };
  r.compute = [](void*, ort::Context*) {};
  r.create_kernel_v2 = [](const ort::CustomOp* self, const void*, const ort::KernelInfo* info, void** kernel) {
    const Operator& op = *of(self).op;
    return guarded(op.name, [&] { *kernel = new Placed{&op, op.create(NodeAttributes(info))}; });
  };
  r.compute_v2 = [](void* kernel, ort::Context* context) {
    const Placed& placed = *static_cast<Placed*>(kernel);
    return guarded(placed.op->name, [&] {
      RuntimeCall call(context);
      call.allocate(shapes_of(placed, call.inputs));
      // Where nothing is asked for, nothing is computed.
      for (const Shape& shape : call.shapes)
        if (count(shape) != 0) return placed.kernel->compute(call);
    });
  };
  r.infer_shape = [](const ort::CustomOp* self, ort::ShapeContext* context) {
    const Operator& op = *of(self).op;
    return guarded(op.name, [&] {
      size_t number = 0;
      check(api.input_count(context, &number));
      std::vector<Tensor> inputs;
      for (size_t i = 0; i < number; ++i) {
        ort::TensorInfo* info = nullptr;  // the context keeps it
        check(api.input_info(context, i, &info));
        inputs.push_back(described(info));
      }
      const std::vector<Shape> shapes = shapes_of({&op, op.create(ShapeAttributes(context))}, inputs);
      for (size_t i = 0; i < shapes.size(); ++i) {
        bool known = true;
        for (int64_t length : shapes[i]) known = known && length != UNKNOWN;
        if (!known) continue;  // what the file says about it stays
        ort::TensorInfo* raw = nullptr;
        check(api.create_info(&raw));
        const Info info(raw);
        // The runtime asks one form of an operator for all its element types.
        const Type type = op.outputs[i] == Type::SAME ? inputs.at(0).type : op.outputs[i];
        check(api.set_type(raw, static_cast<ort::ElementType>(type)));
        check(api.set_dimensions(raw, shapes[i].data(), shapes[i].size()));
        check(api.set_output(context, i, raw));
      }
    });
  };
  return r;
}

// The operator that a name stands for, or null; Name_2 is another body of Name.
const Operator* named(const std::string& name) {
  size_t end = name.size();
  while (end > 0 && name[end - 1] >= '0' && name[end - 1] <= '9') --end;
  const bool numbered = end < name.size() && end > 1 && name[end - 1] == '_';
  const std::string stem = numbered ? name.substr(0, end - 1) : name;
  for (const Operator* op : operators())
    if (stem == op->name) return op;
  return nullptr;
}

std::set<std::string> every_name() {
  std::set<std::string> names;
  for (const Operator* op : operators())
    for (int copy = 1; copy <= COPIES; ++copy)
      names.insert(copy == 1 ? op->name : std::string(op->name) + "_" + std::to_string(copy));
  return names;
}

std::set<std::string> split(const std::string& text) {
  std::set<std::string> names;
  std::string name;
  for (char letter : text + ",")
    if (letter != ',')
      name += letter;
    else if (named(name) != nullptr)
      names.insert(std::exchange(name, {}));
    else
      name.clear();
  return names;
}

// Operators and domains are kept for the life of the process, because sessions hold on to them; equal ones are shared.
ort::Domain* domain_of(const std::set<std::string>& names) {
  static std::mutex lock;
  static auto& ops = *new std::map<std::string, std::vector<std::unique_ptr<Registered>>>;
  static auto& domains = *new std::map<std::set<std::string>, ort::Domain*>;
  const std::lock_guard<std::mutex> guard(lock);
  auto [found, fresh] = domains.try_emplace(names, nullptr);
  if (!fresh) return found->second;
  struct Dropped {
    ort::Domain* domain = nullptr;
    ~Dropped() {
      if (domain != nullptr) api.release(domain);
    }
  } made;
  try {
    check(api.create_domain(OUR_DOMAIN, &made.domain));
    for (const std::string& name : names) {
      auto& forms = ops[name];
      for (Type element : ELEMENTS)
        if (forms.size() < std::size(ELEMENTS))
          forms.push_back(std::make_unique<Registered>(registered(*named(name), name, element)));
      for (const auto& form : forms) check(api.add_to_domain(made.domain, form.get()));
    }
  } catch (...) {
    domains.erase(found);
    throw;
  }
  return found->second = std::exchange(made.domain, nullptr);
}

thread_local std::string chosen;

}  // namespace
}  // namespace poolexport

#define POOL_EXPORT extern "C" __attribute__((visibility("default")))

// ONNX Runtime looks for it by this name.
POOL_EXPORT ort::Status* RegisterCustomOps(ort::SessionOptions* options, const ort::ApiBase* base) {
  using namespace poolexport;
  const void* table = base->get_api(ort::VERSION);
  if (table == nullptr) {
    // Version 1 is in every runtime, and its first entry makes a status.
    const std::string reason = std::string("the kernels of poolexport need onnxruntime 1.20 or newer, and this is ") +
                               base->version() + "; without them the same file runs on standard operators";
    return ort::Api(base->get_api(1)).create_status(ort::NOT_IMPLEMENTED, reason.c_str());
  }
  api = ort::Api(table);
  return guarded("RegisterCustomOps", [&] {
    const std::string names = std::exchange(chosen, {});
    check(api.add_domain(options, domain_of(names.empty() ? every_name() : split(names))));
  });
}

// Says which operators the next registration on this thread is for: names with commas between, as SoftmaxPool_2.
POOL_EXPORT void poolexport_choose(const char* names) {
  try {
    poolexport::chosen = names == nullptr ? "" : names;
  } catch (...) {
    poolexport::chosen.clear();
  }
}

// Names of all operators, with commas between.
POOL_EXPORT const char* poolexport_operators() {
  static const std::string names = [] {
    std::string text;
    for (const poolexport::Operator* op : poolexport::operators()) text += (text.empty() ? "" : ",") + std::string(op->name);
    return text;
  }();
  return names.c_str();
}
