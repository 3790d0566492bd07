// Asks a policy for an action from C++: the SavedModel as TF Serving loads it.
//
//     policy_cc MODEL_DIR NUMBER NUMBER ...
//
// The numbers are one observation of a policy with a single float input; the action is printed.

#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "tensorflow/cc/saved_model/loader.h"
#include "tensorflow/core/framework/tensor.h"
#include "tensorflow/core/public/session_options.h"

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: policy_cc MODEL_DIR NUMBER NUMBER ...\n";
    return 2;
  }
  tensorflow::SavedModelBundleLite model;
  const auto loaded = tensorflow::LoadSavedModel(tensorflow::SessionOptions(), tensorflow::RunOptions(), argv[1],
                                                 {"serve"}, &model);
  if (!loaded.ok()) {
    std::cerr << loaded.ToString() << "\n";
    return 1;
  }
  const auto& signature = model.GetSignatures().at("serving_default");
  if (signature.inputs().size() != 1) {
    std::cerr << "this example is for policies with one input\n";
    return 2;
  }
  tensorflow::Tensor obs(tensorflow::DT_FLOAT, tensorflow::TensorShape({1, argc - 2}));
  for (int k = 2; k < argc; ++k) obs.flat<float>()(k - 2) = std::strtof(argv[k], nullptr);

  // Outputs are asked for by the names of their tensors, which the signature tells.
  const std::vector<std::string> wanted = {signature.outputs().at("action").name(),
                                           signature.outputs().at("value").name()};
  std::vector<tensorflow::Tensor> answer;
  const auto ran =
      model.GetSession()->Run({{signature.inputs().begin()->second.name(), obs}}, wanted, {}, &answer);
  if (!ran.ok()) {
    std::cerr << ran.ToString() << "\n";
    return 1;
  }
  std::cout << "action " << answer[0].SummarizeValue(100) << "\nvalue " << answer[1].SummarizeValue(1) << "\n";
  return 0;
}
