// The table of operators, as other languages read it.
#include "core/ops.h"

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <vector>

#include "rmsnorm/rmsnorm.h"

namespace rmsnorm {
namespace {

// What the JSON of an operator says as strings, in order.
std::vector<std::string_view> Texts(const OpSpec& op) {
  std::vector<std::string_view> texts = {op.name, op.formula};
  const auto add_tensors = [&](const auto& tensors) {
    for (const TensorSpec& tensor : tensors) {
      texts.insert(texts.end(), {tensor.name, tensor.shape, Accepted(tensor.dtypes)});
    }
  };
  add_tensors(op.inputs);
  for (const AttributeSpec& attribute : op.attributes) {
    texts.insert(texts.end(), {attribute.name, attribute.default_value, attribute.accepted});
  }
  add_tensors(op.outputs);
  texts.insert(texts.end(), {op.gradient, op.source});
  return texts;
}

TEST(Operators, TableStatesEveryPartOfEveryOperatorInOrder) {
  const std::string json = rmsnorm_operators();
  size_t at = 0;
  for (const OpSpec* op : kOps) {
    for (const std::string_view text : Texts(*op)) {
      const std::string value = ": \"" + std::string(text) + '"';
      const size_t found = json.find(value, at);
      ASSERT_NE(found, std::string::npos) << value << " after " << json.substr(0, at);
      at = found + value.size();
    }
  }
  EXPECT_EQ(json.substr(at), "}]");
}

TEST(Operators, NoTextHoldsACharacterThatJsonEscapes) {
  for (const OpSpec* op : kOps) {
    for (const std::string_view text : Texts(*op)) {
      for (const char c : text) {
        EXPECT_TRUE(static_cast<unsigned char>(c) >= ' ' && c != '"' && c != '\\') << text;
      }
    }
  }
}

}  // namespace
}  // namespace rmsnorm
