#pragma once
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "planner/model_config.h"
#include "tests/unit/scratch_folder.h"

namespace shoal {

/// The configurations of tests/golden/make_config_fixtures.py, with what transformers derives from each.
inline nlohmann::json config_fixtures() {
  std::ifstream in(std::string(SHOAL_SOURCE_DIR) + "/tests/fixtures/model_configs.json");
  return nlohmann::json::parse(in)["cases"];
}

/// The fixture `name` in the spelling it is published in.
inline nlohmann::json published_config(const std::string& name) {
  const nlohmann::json cases = config_fixtures();
  for (const auto& c : cases) {
    if (c["name"] == name) return c["published"];
  }
  throw std::runtime_error("no fixture " + name);
}

inline ModelConfig read_config(const nlohmann::json& config, const nlohmann::json& generation = nullptr) {
  const ScratchFolder folder;
  folder.write("config.json", config.dump());
  if (!generation.is_null()) folder.write("generation_config.json", generation.dump());
  return ModelConfig::from_file(folder.path());
}

}  // namespace shoal
