#pragma once
#include <filesystem>
#include <nlohmann/json.hpp>

#include "planner/model_config.h"
#include "runtime/gguf_writer.h"

namespace shoal {

/// The keys that describe a model: the inverse of gguf_model_config, in the newer form with kv_b_proj split.
void describe_model(GgufHeaderWriter& header, const ModelConfig& config, const std::string& name);

/// The keys that hold the tokenizer and chat template of a Hugging Face folder: the inverse of gguf_tokenizer_json.
/// Nothing where the folder has no tokenizer.json. Error naming the file where GGUF has no way to say what it holds. Of
/// a GGUF file: the same keys as it has.
void describe_tokenizer(GgufHeaderWriter& header, const ModelConfig& config, const std::filesystem::path& model);

}  // namespace shoal
