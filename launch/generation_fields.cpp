#include "launch/generation_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <mutex>
#include <random>

#include "launch/answer_format.h"
#include "launch/api_error.h"

namespace shoal {
namespace {

using Json = RequestFields::Json;

std::uint64_t random_seed() {
  static std::mutex mutex;
  static std::mt19937_64 generator{std::random_device{}()};
  const std::lock_guard lock(mutex);
  return generator();
}

SamplingParams read_sampling(RequestFields& fields, const SamplingDefaults& defaults) {
  SamplingParams sampling;
  sampling.temperature = static_cast<float>(fields.number("temperature", 0, 2).value_or(defaults.temperature));
  sampling.top_p = static_cast<float>(fields.number("top_p", 0, 1).value_or(defaults.top_p));
  const auto top_k = fields.integer("top_k", -1, INT32_MAX).value_or(defaults.top_k);
  sampling.top_k = static_cast<int>(std::max<std::int64_t>(0, top_k));
  sampling.min_p = static_cast<float>(fields.number("min_p", 0, 1).value_or(defaults.min_p));
  const auto seed = fields.integer("seed", INT64_MIN, INT64_MAX);
  sampling.seed = seed ? static_cast<std::uint64_t>(*seed) : random_seed();
  return sampling;
}

/// However long the list that a client sends, no more is kept of it than there are tokens.
std::vector<std::int32_t> each_once(std::vector<std::int32_t> ids) {
  std::ranges::sort(ids);
  const auto rest = std::ranges::unique(ids);
  ids.erase(rest.begin(), rest.end());
  return ids;
}

/// {"50256": -100}: token ids, as JSON has them for keys.
std::vector<std::pair<std::int32_t, float>> read_logit_bias(RequestFields& fields, const ServedModel& model) {
  const Json* value = fields.find("logit_bias");
  if (!value) return {};
  const auto refuse = [](const std::string& what) { return bad_field("logit_bias", "'logit_bias' " + what); };
  if (!value->is_object()) throw refuse("must be an object of token ids and numbers from -100 to 100");
  std::vector<std::pair<std::int32_t, float>> biases;
  for (const auto& [key, bias] : value->items()) {
    std::int32_t token = -1;
    const auto parsed = std::from_chars(key.data(), key.data() + key.size(), token);
    if (parsed.ec != std::errc() || parsed.ptr != key.data() + key.size() || token < 0 || token >= model.vocab_size) {
      throw refuse(fmt::format("has the key '{}', which is no token id from 0 to {}", key, model.vocab_size - 1));
    }
    const double number = bias.is_number() ? bias.get<double>() : std::nan("");
    if (!(number >= -100 && number <= 100)) throw refuse(fmt::format("of token {} must be from -100 to 100", token));
    biases.emplace_back(token, static_cast<float>(number));
  }
  return biases;
}

/// What shapes the answer beside the distribution it is drawn from; the end tokens are the caller's to set.
TokenRules read_rules(RequestFields& fields, const ServedModel& model) {
  TokenRules rules;
  rules.presence_penalty = static_cast<float>(fields.number("presence_penalty", -2, 2).value_or(0));
  rules.frequency_penalty = static_cast<float>(fields.number("frequency_penalty", -2, 2).value_or(0));
  rules.repetition_penalty =
      static_cast<float>(fields.number("repetition_penalty", 0.01, 100).value_or(model.sampling.repetition_penalty));
  rules.logit_bias = read_logit_bias(fields, model);
  if (const auto allowed = fields.integers("allowed_token_ids")) {
    rules.allowed = each_once(checked_token_ids(model, "allowed_token_ids", *allowed));
    if (rules.allowed.empty()) throw bad_field("allowed_token_ids", "'allowed_token_ids' allows no token");
  }
  rules.grammar = read_answer_format(fields);
  if (!rules.grammar.empty()) tokenizer_of(model, "response_format");
  rules.min_tokens = static_cast<int>(fields.integer("min_tokens", 0, INT32_MAX).value_or(0));
  return rules;
}

void read_stream(RequestFields& fields, GenerationFields& result) {
  result.stream = fields.boolean("stream").value_or(false);
  const Json* options = fields.find("stream_options");
  if (!options) return;
  if (!result.stream) throw bad_field("stream_options", "'stream_options' is only allowed with 'stream': true");
  if (!options->is_object()) throw bad_field("stream_options", "'stream_options' must be an object");
  RequestFields inner(*options);
  result.include_usage = inner.boolean("include_usage").value_or(false);
  inner.only("continuous_usage_stats", {false});
  inner.ignore({"include_obfuscation"});
  inner.finish();
}

/// What changes answers elsewhere and is not here yet, and what changes none.
void refuse_fields_of_all(RequestFields& fields) {
  fields.only("use_beam_search", {false});
  fields.only("length_penalty", {1});
  fields.only("spaces_between_special_tokens", {true});
  fields.only("priority", {0});
  fields.ignore(
      {"metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"});
}

}  // namespace

void check_model(const ServedModel& model, const std::string& name) {
  if (name == "default" || std::find(model.names.begin(), model.names.end(), name) != model.names.end()) return;
  throw ApiError(404, fmt::format("the model '{}' is not served here; '{}' is", name, model.names.front()), "model",
                 "model_not_found");
}

void check_prompt_length(const ServedModel& model, const std::string& field, std::size_t tokens, bool answer_wanted) {
  if (tokens == 0) throw bad_field(field, fmt::format("'{}' is empty; at least one token is needed", field));
  const auto limit = static_cast<std::size_t>(model.max_model_len);
  if (tokens < limit || (tokens == limit && !answer_wanted)) return;
  throw ApiError(400,
                 // In the words of OpenAI's, which clients look for.
                 fmt::format("this model's maximum context length is {} tokens, but the prompt has {}{}", limit, tokens,
                             tokens == limit ? ", which leaves no room for an answer" : ""),
                 field, "context_length_exceeded");
}

void check_min_tokens(const GenerationFields& fields, int max_tokens) {
  const int least = fields.sampling.rules.min_tokens;
  if (least <= max_tokens) return;
  throw bad_field("min_tokens",
                  fmt::format("'min_tokens' is {}, more than the {} that the answer may have", least, max_tokens));
}

std::vector<std::int32_t> checked_token_ids(const ServedModel& model, const std::string& field,
                                            const std::vector<std::int64_t>& ids) {
  std::vector<std::int32_t> checked;
  checked.reserve(ids.size());
  for (const std::int64_t id : ids) {
    if (id < 0 || id >= model.vocab_size) {
      throw bad_field(field, fmt::format("'{}' has the token id {}, but the vocabulary is 0 to {}", field, id,
                                         model.vocab_size - 1));
    }
    checked.push_back(static_cast<std::int32_t>(id));
  }
  return checked;
}

const Tokenizer& tokenizer_of(const ServedModel& model, const std::string& field) {
  if (model.tokenizer) return *model.tokenizer;
  throw bad_field(field,
                  fmt::format("this model has no tokenizer.json, so '{}' cannot be text; give token ids", field));
}

GenerationFields read_generation_fields(RequestFields& fields, const ServedModel& model) {
  GenerationFields result;
  const auto name = fields.string("model");
  if (!name) fields.required("model");
  check_model(model, *name);
  result.model = model.names.front();

  result.n = static_cast<int>(fields.integer("n", 1, 128).value_or(1));
  result.sampling = read_sampling(fields, model.sampling);
  result.client = fields.client;
  result.user = fields.string("user").value_or("").substr(0, 256);
  result.cache_salt = fields.string("cache_salt").value_or("");
  result.stop = fields.strings("stop", 16);
  std::erase(result.stop, std::string());
  if (!result.stop.empty()) tokenizer_of(model, "stop");
  if (const auto ids = fields.integers("stop_token_ids")) {
    result.stop_token_ids = each_once(checked_token_ids(model, "stop_token_ids", *ids));
  }
  TokenRules& rules = result.sampling.rules = read_rules(fields, model);
  rules.end_tokens = result.stop_token_ids;
  rules.end_tokens.insert(rules.end_tokens.end(), model.eos_token_ids.begin(), model.eos_token_ids.end());
  if (!fields.boolean("ignore_eos").value_or(false)) result.stop_token_ids = rules.end_tokens;
  result.include_stop = fields.boolean("include_stop_str_in_output").value_or(false);
  read_stream(fields, result);
  result.skip_special_tokens = fields.boolean("skip_special_tokens").value_or(true);
  result.return_token_ids = fields.boolean("return_token_ids").value_or(false);
  refuse_fields_of_all(fields);
  return result;
}

GenerationRequest GenerationFields::request(std::vector<std::int32_t> prompt, int max_tokens, int i) const {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.max_tokens = max_tokens;
  request.sampling = sampling;
  request.client = client;
  request.user = user;
  request.cache_salt = cache_salt;
  request.sampling.seed += static_cast<std::uint64_t>(i);  // every answer differs, and each can be had again
  request.stop_token_ids = stop_token_ids;
  return request;
}

AnswerOptions GenerationFields::answer_options() const {
  AnswerOptions options;
  options.stop = stop;
  options.include_stop = include_stop;
  options.min_tokens = sampling.rules.min_tokens;
  options.skip_special_tokens = skip_special_tokens;
  return options;
}

}  // namespace shoal
