#pragma once
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "runtime/text/chat_template.h"

namespace shoal {

/// The tokenizer.json that says the same as a GGUF's `tokenizer.ggml.*` metadata, for Tokenizer::from_json: byte-level
/// BPE ("gpt2") with the splitting rules that `tokenizer.ggml.pre` names, and SentencePiece's BPE ("llama"). Error
/// begins with `place`, and names a rule or model that is not known.
nlohmann::json gguf_tokenizer_json(const nlohmann::json& metadata, const std::string& place);

/// The value of `tokenizer.ggml.pre` for a tokenizer.json: the rule whose patterns it has. Error beginning with `place`
/// where there is none.
std::string gguf_splitting_rule(const nlohmann::json& tokenizer_json, const std::string& place);

/// `tokenizer.chat_template`; none where there is none.
std::optional<ChatTemplate> gguf_chat_template(const nlohmann::json& metadata, const std::string& place);

}  // namespace shoal
