#include "launch/completions.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <numeric>

#include "launch/answer_job.h"
#include "launch/generation_fields.h"
#include "launch/logprobs_json.h"

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t max_prompts = 2048, max_answers = 2048;

struct Prompt {
  std::vector<std::int32_t> ids;
  std::string text;              // as `echo` gives it back
  std::size_t added_tokens = 0;  // at the front, by the tokenizer; no part of the text
};

struct CompletionFields : GenerationFields {
  std::vector<Prompt> prompts;
  int max_tokens = 16;
  int logprobs = -1;
  bool echo = false;
  int best_of = 1;  // answers to each prompt, of which the n likeliest are given
};

Prompt text_prompt(const ServedModel& model, const std::string& text) {
  const Tokenizer& tokenizer = tokenizer_of(model, "prompt");
  Prompt prompt{tokenizer.encode(text, true), text, 0};
  const auto added = tokenizer.encode("", true);
  prompt.added_tokens = static_cast<std::size_t>(
      std::mismatch(added.begin(), added.end(), prompt.ids.begin(), prompt.ids.end()).first - added.begin());
  return prompt;
}

Prompt id_prompt(const ServedModel& model, const Json& ids) {
  Prompt prompt{checked_token_ids(model, "prompt", ids.get<std::vector<std::int64_t>>()), {}, 0};
  if (model.tokenizer) prompt.text = model.tokenizer->decode(prompt.ids, false);
  return prompt;
}

/// A string, a list of token ids, or a list of either.
std::vector<Prompt> read_prompts(const ServedModel& model, const Json& value) {
  const auto refuse = [] {
    return bad_field("prompt", "'prompt' must be a string, a list of token ids, or a list of either");
  };
  const auto is_ids = [](const Json& list) {
    return list.is_array() && !list.empty() &&
           std::all_of(list.begin(), list.end(), [](const Json& item) { return item.is_number_integer(); });
  };
  const auto one = [&](const Json& item) {
    if (item.is_string()) return text_prompt(model, item.get_ref<const std::string&>());
    if (is_ids(item)) return id_prompt(model, item);
    throw refuse();
  };
  if (value.is_string() || is_ids(value)) return {one(value)};
  if (!value.is_array() || value.empty()) throw refuse();
  if (value.size() > max_prompts) {
    throw bad_field("prompt", fmt::format("'prompt' has {} entries; at most {} are taken", value.size(), max_prompts));
  }
  std::vector<Prompt> prompts;
  for (const Json& item : value) prompts.push_back(one(item));
  return prompts;
}

CompletionFields read_fields(const ServedModel& model, RequestFields& fields) {
  CompletionFields result{read_generation_fields(fields, model), {}};
  result.echo = fields.boolean("echo").value_or(false);
  result.logprobs = static_cast<int>(fields.integer("logprobs", 0, 20).value_or(-1));
  result.max_tokens = static_cast<int>(fields.integer("max_tokens", 0, INT32_MAX).value_or(16));
  if (result.max_tokens == 0 && !result.echo) {
    throw bad_field("max_tokens", "'max_tokens' is 0, which asks for nothing unless 'echo' is true");
  }
  result.best_of = static_cast<int>(fields.integer("best_of", result.n, 128).value_or(result.n));
  if (result.best_of > result.n && result.stream) {
    throw bad_field("best_of", "'best_of' above 'n' cannot be streamed: the best is known in the end only");
  }
  fields.only("suffix", {""});
  result.prompts = read_prompts(model, fields.required("prompt"));
  if (const auto answers = result.prompts.size() * static_cast<std::size_t>(result.best_of); answers > max_answers) {
    throw bad_field(result.best_of > result.n ? "best_of" : "n",
                    fmt::format("{} answers to each of {} prompts are {}; a request may ask for {} at most",
                                result.best_of, result.prompts.size(), answers, max_answers));
  }
  fields.finish();
  check_min_tokens(result, result.max_tokens);
  for (const Prompt& prompt : result.prompts) {
    check_prompt_length(model, "prompt", prompt.ids.size(), result.max_tokens > 0);
  }
  return result;
}

class CompletionJob : public AnswerJob {
 public:
  CompletionJob(const ServedModel& model, CompletionFields fields, Responder responder)
      : AnswerJob(std::move(responder), fields.stream),
        tokenizer_(model.tokenizer),
        fields_(std::move(fields)),
        id_(new_id("cmpl")),
        created_(std::time(nullptr)) {
    for (const Prompt& prompt : fields_.prompts) {
      usage_.prompt_tokens += static_cast<int>(prompt.ids.size());
      for (int i = 0; i < fields_.best_of; ++i) choices_.emplace_back(prompt, tokenizer_.get());
    }
  }

  std::size_t parts() const { return choices_.size(); }
  Part part(std::size_t i) const {
    const int answer = static_cast<int>(i) % fields_.best_of;
    GenerationRequest request = fields_.request(choices_[i].prompt.ids, fields_.max_tokens, answer);
    request.logprobs = chooses() ? std::max(fields_.logprobs, 0) : fields_.logprobs;
    request.prompt_logprobs = fields_.echo && fields_.logprobs >= 0;
    return {std::move(request), fields_.answer_options()};
  }

 private:
  /// What there is of a choice and was not sent yet.
  struct Choice {
    const Prompt& prompt;
    std::string text;
    LegacyLogprobs logprobs;
    std::vector<std::int32_t> token_ids;
    FinishReason finish = FinishReason::none;
    bool begun = false;
    double logprob_sum = 0;  // of the answer's tokens, where the best is to be found
    int scored_tokens = 0;

    Choice(const Prompt& its_prompt, const Tokenizer* tokenizer) : prompt(its_prompt), logprobs(tokenizer) {}
  };

  bool chooses() const { return fields_.best_of > fields_.n; }

  bool in_text(std::int32_t token) const {
    return tokenizer_ && !(fields_.skip_special_tokens && tokenizer_->is_special(token));
  }

  /// The prompt's part of the choice: its log-probabilities are there with the first delta.
  void echo(Choice& choice, const std::vector<TokenLogprob>& scores) {
    choice.text = choice.prompt.text;
    if (fields_.logprobs < 0) return;
    const bool has_text = tokenizer_ != nullptr;
    choice.logprobs.add_first(choice.prompt.ids.front(), has_text && choice.prompt.added_tokens == 0);
    for (std::size_t i = 0; i < scores.size(); ++i) {
      choice.logprobs.add(scores[i], has_text && i + 1 >= choice.prompt.added_tokens);
    }
  }

  void grew(std::size_t part, const AnswerDelta& delta, const AnswerStream& answer) override {
    Choice& choice = choices_[part];
    const bool first = !std::exchange(choice.begun, true);
    if (first && fields_.echo) echo(choice, delta.prompt);
    choice.text += delta.content;
    for (const TokenLogprob& token : delta.logprobs) {
      choice.logprobs.add(token, in_text(token.token));
      choice.logprob_sum += token.logprob;
      ++choice.scored_tokens;
    }
    if (fields_.return_token_ids) {
      choice.token_ids.insert(choice.token_ids.end(), delta.tokens.begin(), delta.tokens.end());
    }
    choice.finish = delta.finish;
    if (delta.finish != FinishReason::none) {
      usage_.completion_tokens += answer.completion_tokens();
      if (part % static_cast<std::size_t>(fields_.best_of) == 0) usage_.cached_tokens += answer.cached_tokens();
    }
    if (!streaming()) return;
    const bool news = !choice.text.empty() || !delta.logprobs.empty() || !choice.token_ids.empty();
    if (news || first || delta.finish != FinishReason::none) send_event(chunk(Json::array({take_choice(part, first)})));
  }

  void completed() override {
    if (!streaming()) {
      Json choices = Json::array();
      for (const std::size_t chosen : best_choices()) {
        choices.push_back(take_choice(chosen, true));
        choices.back()["index"] = choices.size() - 1;
      }
      Json response = object(std::move(choices));
      response["usage"] = to_json(usage_, false);
      send_json(response);
    } else if (fields_.include_usage) {
      Json last = object(Json::array());
      last["usage"] = to_json(usage_, false);
      send_event(last);
    }
  }

  /// Of each prompt the n choices that are likeliest per token, those first; all, in order, where no more were made.
  std::vector<std::size_t> best_choices() const {
    const auto of_prompt = static_cast<std::size_t>(fields_.best_of);
    const auto score = [this](std::size_t i) {
      return choices_[i].logprob_sum / std::max(1, choices_[i].scored_tokens);
    };
    std::vector<std::size_t> best;
    for (std::size_t first = 0; first < choices_.size(); first += of_prompt) {
      std::vector<std::size_t> order(of_prompt);
      std::iota(order.begin(), order.end(), first);
      if (chooses()) {
        std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return score(a) > score(b); });
      }
      best.insert(best.end(), order.begin(), order.begin() + fields_.n);
    }
    return best;
  }

  Json take_choice(std::size_t index, bool first) {
    Choice& choice = choices_[index];
    Json json = {{"index", index},
                 {"text", std::exchange(choice.text, {})},
                 {"logprobs", fields_.logprobs >= 0 ? choice.logprobs.take() : Json(nullptr)},
                 {"finish_reason", to_json(choice.finish)}};
    if (fields_.return_token_ids) {
      if (first) json["prompt_token_ids"] = choice.prompt.ids;
      json["token_ids"] = std::exchange(choice.token_ids, {});
    }
    return json;
  }

  Json object(Json choices) const {
    return {{"id", id_},
            {"object", "text_completion"},
            {"created", created_},
            {"model", fields_.model},
            {"choices", std::move(choices)}};
  }
  Json chunk(Json choices) const {
    Json json = object(std::move(choices));
    if (fields_.include_usage) json["usage"] = nullptr;
    return json;
  }

  const std::shared_ptr<const Tokenizer> tokenizer_;
  const CompletionFields fields_;
  const std::string id_;
  const std::int64_t created_;
  std::vector<Choice> choices_;  // those of the first prompt, then those of the second ...
  Usage usage_;
};

}  // namespace

void complete(const ServedModel& model, GenerationService& service, RequestFields fields, Responder responder) {
  auto job = std::make_shared<CompletionJob>(model, read_fields(model, fields), std::move(responder));
  job->start(service, job->parts(), [&](std::size_t i) { return job->part(i); });
}

}  // namespace shoal
