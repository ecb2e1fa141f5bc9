// The operator table as JSON.
#include "core/ops.h"

#include <string>
#include <string_view>

namespace rmsnorm {
namespace {

std::string Quoted(std::string_view text) { return '"' + std::string(text) + '"'; }

template <class Items, class ToJson>
std::string Array(const Items& items, const ToJson& to_json) {
  std::string json;
  for (const auto& item : items) json += (json.empty() ? "" : ", ") + to_json(item);
  return '[' + json + ']';
}

std::string TensorJson(const TensorSpec& tensor) {
  return "{\"name\": " + Quoted(tensor.name) + ", \"shape\": " + Quoted(tensor.shape) +
         ", \"dtypes\": " + Quoted(Accepted(tensor.dtypes)) +
         ", \"optional\": " + (tensor.optional ? "true" : "false") + '}';
}

std::string AttributeJson(const AttributeSpec& attribute) {
  return "{\"name\": " + Quoted(attribute.name) +
         ", \"default\": " + Quoted(attribute.default_value) +
         ", \"accepted\": " + Quoted(attribute.accepted) + '}';
}

std::string OpJson(const OpSpec* op) {
  return "{\"name\": " + Quoted(op->name) + ", \"formula\": " + Quoted(op->formula) +
         ", \"inputs\": " + Array(op->inputs, TensorJson) +
         ", \"attributes\": " + Array(op->attributes, AttributeJson) +
         ", \"outputs\": " + Array(op->outputs, TensorJson) +
         ", \"gradient\": " + Quoted(op->gradient) + ", \"source\": " + Quoted(op->source) + '}';
}

}  // namespace

const std::string& OpsAsJson() {
  static const std::string json = Array(kOps, OpJson);
  return json;
}

}  // namespace rmsnorm
