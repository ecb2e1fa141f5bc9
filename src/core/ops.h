// Every operator, stated once: the argument checks, the PyTorch schemas and `rmsnorm ops` are read
// from here.
#ifndef RMSNORM_CORE_OPS_H_
#define RMSNORM_CORE_OPS_H_

#include <array>
#include <limits>
#include <span>
#include <string>
#include <string_view>

namespace rmsnorm {

enum class Dtypes {
  kAny,       // float32, float16 or bfloat16; float64 where all are
  kOfX,       // x's
  kOfXOrF32,  // x's, or float32
  kReal,      // float32; float64 where x is
};

struct TensorSpec {
  std::string_view name;
  std::string_view shape;
  Dtypes dtypes;
  bool optional = false;  // an input: may be absent; an output: is written where it is wanted
};

enum class AttributeType { kFloat, kInt, kRounding, kDtype, kWanted };

struct AttributeSpec {
  std::string_view name;
  AttributeType type;
  std::string_view default_value;  // empty: none, it must be given
  std::string_view accepted;
  double minimum = std::numeric_limits<double>::lowest();  // of a kFloat
};

struct OpSpec {
  std::string_view name;
  std::string_view formula;
  std::span<const TensorSpec> inputs;
  std::span<const AttributeSpec> attributes;
  std::span<const TensorSpec> outputs;
  std::string_view gradient;  // the operator that computes it
  std::string_view source;
};

inline constexpr AttributeSpec kEpsilon = {.name = "epsilon",
                                           .type = AttributeType::kFloat,
                                           .default_value = "1e-6",
                                           .accepted = "a finite number >= 0",
                                           .minimum = 0};
inline constexpr AttributeSpec kGammaOffset = {.name = "gamma_offset",
                                               .type = AttributeType::kFloat,
                                               .default_value = "0.0",
                                               .accepted = "a finite number, 0 without gamma"};
inline constexpr AttributeSpec kRounding = {.name = "rounding",
                                            .type = AttributeType::kRounding,
                                            .default_value = "once",
                                            .accepted = "once or before_gamma"};
inline constexpr AttributeSpec kOutDtype = {.name = "out_dtype",
                                            .type = AttributeType::kDtype,
                                            .default_value = "None",
                                            .accepted = "x's dtype or float32"};
inline constexpr AttributeSpec kWanted = {.name = "wanted",
                                          .type = AttributeType::kWanted,
                                          .default_value = "[True, True]",
                                          .accepted = "one bool for each of dx, dgamma"};

inline constexpr TensorSpec kX = {"x", "[..., *gamma]", Dtypes::kAny};
inline constexpr TensorSpec kGamma = {"gamma", "[*gamma]", Dtypes::kAny, /*optional=*/true};
inline constexpr TensorSpec kRstd = {"rstd", "[..., 1 for each of gamma's]", Dtypes::kReal};

namespace rms_norm {
inline constexpr TensorSpec kInputs[] = {kX, kGamma};
inline constexpr AttributeSpec kAttributes[] = {kEpsilon, kGammaOffset, kRounding, kOutDtype};
inline constexpr TensorSpec kOutputs[] = {{"y", "like x", Dtypes::kOfXOrF32}, kRstd};
}  // namespace rms_norm

inline constexpr OpSpec kRmsNorm = {
    .name = "rms_norm",
    .formula = "rstd = 1 / sqrt(mean(x^2) + epsilon);  y = x * rstd * (gamma_offset + gamma)",
    .inputs = rms_norm::kInputs,
    .attributes = rms_norm::kAttributes,
    .outputs = rms_norm::kOutputs,
    .gradient = "rms_norm_backward",
    .source = "Zhang and Sennrich 2019, arXiv:1910.07467, eq. 4; epsilon as in LLaMA"};

namespace rms_norm_backward {
inline constexpr TensorSpec kDy = {"dy", "like x", Dtypes::kOfXOrF32};
inline constexpr TensorSpec kInputs[] = {kDy, kX, kGamma, kRstd};
inline constexpr AttributeSpec kAttributes[] = {kGammaOffset, kWanted};
inline constexpr TensorSpec kOutputs[] = {{"dx", "like x", Dtypes::kOfX, /*optional=*/true},
                                          {"dgamma", "[*gamma]", Dtypes::kReal, /*optional=*/true}};
}  // namespace rms_norm_backward

inline constexpr OpSpec kRmsNormBackward = {
    .name = "rms_norm_backward",
    .formula =
        "xhat = x * rstd;  w = dy * (gamma_offset + gamma);  "
        "dx = (w - xhat * mean(w * xhat)) * rstd;  dgamma = column sums of dy * xhat",
    .inputs = rms_norm_backward::kInputs,
    .attributes = rms_norm_backward::kAttributes,
    .outputs = rms_norm_backward::kOutputs,
    .gradient = "a composite of PyTorch's operators, in float64",
    .source = "the derivative of rms_norm; rstd counts as a function of x"};

// Where the elements of a row are spread over several calls, each has an aligned run of columns.
inline constexpr TensorSpec kSums = {"sums", "like rstd", Dtypes::kReal};

namespace rms_norm_row_sums {
inline constexpr TensorSpec kInputs[] = {rms_norm_backward::kDy, kX, kGamma, kRstd};
inline constexpr AttributeSpec kAttributes[] = {kGammaOffset};
inline constexpr TensorSpec kOutputs[] = {kSums};
}  // namespace rms_norm_row_sums

inline constexpr OpSpec kRmsNormRowSums = {
    .name = "rms_norm_row_sums",
    .formula =
        "xhat = x * rstd;  w = dy * (gamma_offset + gamma);  sums = row sums of w * xhat "
        "(of x^2 where dy is x, gamma absent and rstd 1)",
    .inputs = rms_norm_row_sums::kInputs,
    .attributes = rms_norm_row_sums::kAttributes,
    .outputs = rms_norm_row_sums::kOutputs,
    .gradient = "none",
    .source = "the sum in rms_norm_backward, and that in rms_norm"};

namespace rms_norm_backward_from_sums {
inline constexpr TensorSpec kInputs[] = {rms_norm_backward::kDy, kX, kGamma, kRstd, kSums};
inline constexpr AttributeSpec kN = {.name = "n",
                                     .type = AttributeType::kInt,
                                     .default_value = "",
                                     .accepted = "the elements of a whole row, x's or more"};
inline constexpr AttributeSpec kAttributes[] = {kN, kGammaOffset, kWanted};
}  // namespace rms_norm_backward_from_sums

inline constexpr OpSpec kRmsNormBackwardFromSums = {
    .name = "rms_norm_backward_from_sums",
    .formula = "as rms_norm_backward, with mean(w * xhat) = sums / n",
    .inputs = rms_norm_backward_from_sums::kInputs,
    .attributes = rms_norm_backward_from_sums::kAttributes,
    .outputs = rms_norm_backward::kOutputs,
    .gradient = "none",
    .source = "the derivative of rms_norm, where a call has a part of each row"};

inline constexpr std::array kOps = {&kRmsNorm, &kRmsNormBackward, &kRmsNormRowSums,
                                    &kRmsNormBackwardFromSums};

constexpr std::string_view Accepted(Dtypes dtypes) {
  switch (dtypes) {
    case Dtypes::kAny:
      return "float32, float16 or bfloat16 (or float64, with all others)";
    case Dtypes::kOfX:
      return "x's";
    case Dtypes::kOfXOrF32:
      return "x's or float32";
    case Dtypes::kReal:
      return "float32 (float64 where x is)";
  }
  return "";
}

// All of kOps as a JSON array; every text above is free of characters that JSON escapes.
const std::string& OpsAsJson();

}  // namespace rmsnorm

#endif  // RMSNORM_CORE_OPS_H_
