#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "launch/answer_stream.h"
#include "launch/request_fields.h"
#include "launch/served_model.h"
#include "runtime/coordinator.h"

namespace shoal {

/// What completions and chat completions have in common.
struct GenerationFields {
  std::string model;  // as the answer names it
  int n = 1;
  SamplingParams sampling;
  std::string client;      // the API key or address
  std::string user;        // who takes turns with others
  std::string cache_salt;  // as vLLM's: only requests with the same share what is cached of their prompts
  std::vector<std::string> stop;
  std::vector<std::int32_t> stop_token_ids;
  bool stream = false;
  bool include_usage = false;  // of a stream, in a last chunk
  bool skip_special_tokens = true;
  bool include_stop = false;      // the stop string that was met is part of the text
  bool return_token_ids = false;  // beside the text

  /// The request for the i-th answer to a prompt.
  GenerationRequest request(std::vector<std::int32_t> prompt, int max_tokens, int i) const;
  AnswerOptions answer_options() const;
};

/// Throws ApiError 404 for a model that is not served, 400 for everything else.
GenerationFields read_generation_fields(RequestFields& fields, const ServedModel& model);

/// Throws ApiError 404 unless `name` is one of the served model's.
void check_model(const ServedModel& model, const std::string& name);

/// Throws ApiError when an answer cannot have as many tokens as it is to have at least.
void check_min_tokens(const GenerationFields& fields, int max_tokens);

/// Throws ApiError naming `field` unless a prompt of so many tokens, with room for an answer if one is wanted, fits.
void check_prompt_length(const ServedModel& model, const std::string& field, std::size_t tokens, bool answer_wanted);

/// Token ids from a request, each checked to be in the vocabulary.
std::vector<std::int32_t> checked_token_ids(const ServedModel& model, const std::string& field,
                                            const std::vector<std::int64_t>& ids);

/// The model's tokenizer, or ApiError 400: this model takes token ids only.
const Tokenizer& tokenizer_of(const ServedModel& model, const std::string& field);

}  // namespace shoal
