// The entries of ONNX Runtime's C interface that the kernels use, declared here because no package ships the headers.
//
// The tables are append-only: an entry keeps its slot in every later release, so slots are written as numbers. Nothing
// is asked of a runtime older than 1.20 (version 20 of the interface).
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

constexpr uint32_t VERSION = 20;

struct Status;
struct SessionOptions;
struct Domain;
struct KernelInfo;
struct Context;
struct Value;
struct TensorInfo;
struct ShapeContext;
struct OpAttr;

enum ErrorCode : int { FAIL = 1, INVALID_ARGUMENT = 2, NOT_IMPLEMENTED = 9 };
enum ElementType : int {
  UNDEFINED = 0, FLOAT = 1, UINT8 = 2, INT8 = 3, UINT16 = 4, INT16 = 5, INT32 = 6, INT64 = 7, STRING = 8, BOOL = 9,
  FLOAT16 = 10, DOUBLE = 11, UINT32 = 12, UINT64 = 13, BFLOAT16 = 16
};
enum Characteristic : int { REQUIRED = 0, OPTIONAL = 1, VARIADIC = 2 };
enum AttributeType : int { INT_VALUE = 1, INT_VALUES = 2, FLOAT_VALUE = 3, FLOAT_VALUES = 4, STRING_VALUE = 5 };
enum MemoryType : int { CPU = 0 };

// The table of functions, read by slot.
class Api {
 public:
  Api() = default;
  explicit Api(const void* table) : table_(static_cast<void* const*>(table)) {}

  Status* create_status(ErrorCode code, const char* text) const { return call<0, Status*>(code, text); }
  Status* create_domain(const char* name, Domain** out) const { return call<26, Status*>(name, out); }
  Status* add_to_domain(Domain* domain, const struct CustomOp* op) const { return call<27, Status*>(domain, op); }
  Status* add_domain(SessionOptions* options, Domain* domain) const { return call<28, Status*>(options, domain); }
  Status* data(Value* value, void** out) const { return call<51, Status*>(value, out); }
  Status* create_info(TensorInfo** out) const { return call<57, Status*>(out); }
  Status* set_type(TensorInfo* info, ElementType type) const { return call<58, Status*>(info, type); }
  Status* set_dimensions(TensorInfo* info, const int64_t* lengths, size_t count) const {
    return call<59, Status*>(info, lengths, count);
  }
  Status* type(const TensorInfo* info, ElementType* out) const { return call<60, Status*>(info, out); }
  Status* rank(const TensorInfo* info, size_t* out) const { return call<61, Status*>(info, out); }
  Status* dimensions(const TensorInfo* info, int64_t* out, size_t count) const {
    return call<62, Status*>(info, out, count);
  }
  Status* info(const Value* value, TensorInfo** out) const { return call<65, Status*>(value, out); }
  Status* attribute(const KernelInfo* info, const char* name, float* out) const {
    return call<85, Status*>(info, name, out);
  }
  Status* attribute(const KernelInfo* info, const char* name, int64_t* out) const {
    return call<86, Status*>(info, name, out);
  }
  Status* attribute(const KernelInfo* info, const char* name, char* out, size_t* size) const {
    return call<87, Status*>(info, name, out, size);
  }
  Status* input_count(const Context* context, size_t* out) const { return call<88, Status*>(context, out); }
  Status* input(const Context* context, size_t index, const Value** out) const {
    return call<90, Status*>(context, index, out);
  }
  Status* output(Context* context, size_t index, const int64_t* lengths, size_t count, Value** out) const {
    return call<91, Status*>(context, index, lengths, count, out);
  }
  void release(Status* status) const { call<93, void>(status); }
  void release(TensorInfo* info) const { call<99, void>(info); }
  void release(Domain* domain) const { call<101, void>(domain); }
  Status* attributes(const KernelInfo* info, const char* name, float* out, size_t* size) const {
    return call<162, Status*>(info, name, out, size);
  }
  Status* attributes(const KernelInfo* info, const char* name, int64_t* out, size_t* size) const {
    return call<163, Status*>(info, name, out, size);
  }
  Status* input_count(const ShapeContext* context, size_t* out) const { return call<267, Status*>(context, out); }
  Status* input_info(const ShapeContext* context, size_t index, TensorInfo** out) const {
    return call<268, Status*>(context, index, out);
  }
  Status* attribute(const ShapeContext* context, const char* name, const OpAttr** out) const {
    return call<269, Status*>(context, name, out);
  }
  Status* set_output(const ShapeContext* context, size_t index, const TensorInfo* info) const {
    return call<270, Status*>(context, index, info);
  }
  Status* read(const OpAttr* attribute, AttributeType type, void* data, size_t bytes, size_t* out) const {
    return call<272, Status*>(attribute, type, data, bytes, out);
  }
  Status* parallel_for(const Context* context, void (*work)(void*, size_t), size_t total, size_t batches,
                       void* user) const {
    return call<274, Status*>(context, work, total, batches, user);
  }

 private:
  template <int SLOT, class R, class... Args>
  R call(Args... args) const {
    return reinterpret_cast<R (*)(Args...)>(table_[SLOT])(args...);
  }

  void* const* table_ = nullptr;
};

struct ApiBase {
  const void* (*get_api)(uint32_t version);
  const char* (*version)();
};

// What ONNX Runtime asks an operator; the order of the fields is the interface.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const void* api, const KernelInfo*);
  const char* (*name)(const CustomOp*);
  const char* (*provider)(const CustomOp*);
  ElementType (*input_type)(const CustomOp*, size_t);
  size_t (*inputs)(const CustomOp*);
  ElementType (*output_type)(const CustomOp*, size_t);
  size_t (*outputs)(const CustomOp*);
  void (*compute)(void* kernel, Context*);
  void (*destroy)(void* kernel);
  Characteristic (*input_characteristic)(const CustomOp*, size_t);
  Characteristic (*output_characteristic)(const CustomOp*, size_t);
  MemoryType (*input_memory)(const CustomOp*, size_t);
  int (*variadic_inputs)(const CustomOp*);
  int (*variadic_inputs_alike)(const CustomOp*);
  int (*variadic_outputs)(const CustomOp*);
  int (*variadic_outputs_alike)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const void* api, const KernelInfo*, void** kernel);
  Status* (*compute_v2)(void* kernel, Context*);
  Status* (*infer_shape)(const CustomOp*, ShapeContext*);
  int (*first_version)(const CustomOp*);
  int (*last_version)(const CustomOp*);
  size_t (*may_inplace)(int** inputs, int** outputs);
  void (*release_inplace)(int* inputs, int* outputs);
  size_t (*aliases)(int** inputs, int** outputs);
  void (*release_aliases)(int* inputs, int* outputs);
};
static_assert(sizeof(void*) == 8 && sizeof(CustomOp) == 208, "the interface is that of 64-bit machines");

}  // namespace ort
