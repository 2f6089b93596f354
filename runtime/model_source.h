#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "planner/model_config.h"
#include "planner/precision.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"

/// What a model is made of besides its tensors (checkpoint.h), read from a Hugging Face folder or from a GGUF file,
/// whichever `model` is. Errors name the file.
namespace shoal {

ModelConfig read_model_config(const std::filesystem::path& model);

/// What its weights are stored as: of a GGUF file each tensor's own type, named after the one that most bytes have; of
/// a folder what its configuration says. Error where the file has a type that the planner does not know.
Precision stored_precision(const std::filesystem::path& model, const ModelConfig& config);

/// Null where the model has none: it then takes and gives token ids only.
std::shared_ptr<const Tokenizer> read_tokenizer(const std::filesystem::path& model);
/// Error where it gives ids that the model, which has embeddings for `vocab_size` tokens, cannot look up. (More
/// embeddings than tokens are common: their number is rounded up.)
void check_ids(const Tokenizer& tokenizer, int vocab_size, const std::filesystem::path& model);

std::optional<ChatTemplate> read_chat_template(const std::filesystem::path& model);

/// What the API calls it: the folder's name, or the file's without ".gguf" and the number of its part.
std::string model_name(const std::filesystem::path& model);

}  // namespace shoal
