#include "runtime/step.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <string_view>
#include <type_traits>

#include "base/error.h"

// The binary form: fields in the order of their declaration, little-endian, fixed width; a vector or string is a u32
// count and its elements. The first byte tells the kind of message, since a control frame that went astray should not
// decode by chance. Counters of experts take a byte each, and those too large for it follow in full behind the last:
// most are small, and R1 has 14,848 of them a rank and step, which rank 0 reads for all ranks.
namespace shoal {
namespace {

/// The byte of a counter that follows in full.
constexpr std::uint32_t large_counter = 255;

template <class T>
using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;

class Writer {
 public:
  explicit Writer(Message kind) { byte(static_cast<std::uint8_t>(kind)); }

  void byte(std::uint8_t value) { bytes_.push_back(static_cast<std::byte>(value)); }
  void flag(bool value) { byte(value ? 1 : 0); }

  /// A 32- or 64-bit integer or float.
  template <class T>
  void number(T value) {
    const auto bits = std::bit_cast<Bits<T>>(value);
    std::byte little[sizeof bits];
    for (unsigned i = 0; i < sizeof bits; ++i) little[i] = static_cast<std::byte>(bits >> (8 * i) & 0xFF);
    bytes_.insert(bytes_.end(), little, little + sizeof bits);
  }

  void count(std::size_t n) {
    if (n > std::numeric_limits<std::uint32_t>::max()) fail("a control message cannot hold {} elements", n);
    number(static_cast<std::uint32_t>(n));
  }

  template <class T>
  void numbers(const std::vector<T>& values) {
    count(values.size());
    bytes_.reserve(bytes_.size() + values.size() * sizeof(T));
    for (const T value : values) number(value);
  }

  void counters(const std::vector<std::uint32_t>& values) {
    count(values.size());
    const auto cut = [](std::uint32_t value) { return static_cast<std::byte>(std::min(value, large_counter)); };
    std::transform(values.begin(), values.end(), more(values.size()), cut);
    for (const std::uint32_t value : values)
      if (value >= large_counter) number(value);
  }

  void text(std::string_view value) {
    count(value.size());
    for (const char c : value) byte(static_cast<std::uint8_t>(c));
  }

  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  /// Where `n` more bytes go.
  std::vector<std::byte>::iterator more(std::size_t n) {
    bytes_.resize(bytes_.size() + n);
    return bytes_.end() - static_cast<std::ptrdiff_t>(n);
  }

  std::vector<std::byte> bytes_;
};

class StepReader {
 public:
  StepReader(std::span<const std::byte> bytes, Message kind, const char* name) : bytes_(bytes), name_(name) {
    if (byte() != static_cast<std::uint8_t>(kind)) malformed("its first byte is of another kind of message");
  }

  std::uint8_t byte() {
    need(1);
    return static_cast<std::uint8_t>(bytes_[at_++]);
  }

  bool flag() {
    const std::uint8_t value = byte();
    if (value > 1) malformed("a flag is neither 0 nor 1");
    return value == 1;
  }

  template <class T>
  void number(T& value) {
    need(sizeof(T));
    Bits<T> bits = 0;
    for (unsigned i = 0; i < sizeof bits; ++i) bits |= static_cast<Bits<T>>(bytes_[at_ + i]) << (8 * i);
    at_ += sizeof bits;
    value = std::bit_cast<T>(bits);
  }

  /// The count of elements that take at least `element_bytes` each. Checked against what is left, so that a lie never
  /// makes us allocate much more than the message itself.
  std::size_t count(std::size_t element_bytes) {
    std::uint32_t n = 0;
    number(n);
    if (n > (bytes_.size() - at_) / element_bytes) malformed("it counts more elements than it has bytes for");
    return n;
  }

  template <class T>
  void numbers(std::vector<T>& values) {
    values.resize(count(sizeof(T)));
    for (T& value : values) number(value);
  }

  void counters(std::vector<std::uint32_t>& values) {
    values.resize(count(1));
    const std::string_view small(reinterpret_cast<const char*>(bytes_.data() + at_), values.size());
    at_ += small.size();
    std::transform(small.begin(), small.end(), values.begin(), [](char c) { return static_cast<std::uint8_t>(c); });
    constexpr char large = static_cast<char>(large_counter);
    for (auto i = small.find(large); i != small.npos; i = small.find(large, i + 1)) number(values[i]);
  }

  void text(std::string& value) {
    value.resize(count(1));
    for (char& c : value) c = static_cast<char>(byte());
  }

  void end() const {
    if (at_ != bytes_.size()) malformed("bytes are left over");
  }

 private:
  void need(std::size_t n) const {
    if (bytes_.size() - at_ < n) malformed("it is cut off");
  }
  [[noreturn]] void malformed(const char* why) const {
    fail("malformed {} of {} bytes on the control plane: {}", name_, bytes_.size(), why);
  }

  std::span<const std::byte> bytes_;
  const char* name_;
  std::size_t at_ = 0;
};

// Fewest bytes an element takes: what its fixed fields and empty vectors need.
constexpr std::size_t min_rules_bytes = (4 + 4 + 4) + 4 + 4 + 4 + 4 + 4 + 1 + (4 + 4 + 4) + 4;
constexpr std::size_t min_start_bytes = 8 + (4 + 4 + 4 + 4 + 8 + min_rules_bytes) + 4 + 4;
constexpr std::size_t min_chunk_bytes = 8 + 4 + 4 + 4 + 4 + 1 + 1 + 4;
constexpr std::size_t min_logprob_bytes = 4 + 4 + 4;
constexpr std::size_t top_entry_bytes = 4 + 4;
constexpr std::size_t min_output_bytes = 8 + 4 + 1 + 1 + 4 + 4 + 4;

void put(Writer& out, const std::vector<std::pair<std::int32_t, float>>& pairs) {
  out.count(pairs.size());
  for (const auto& [token, value] : pairs) {
    out.number(token);
    out.number(value);
  }
}

void get(StepReader& in, std::vector<std::pair<std::int32_t, float>>& pairs) {
  pairs.resize(in.count(top_entry_bytes));
  for (auto& [token, value] : pairs) {
    in.number(token);
    in.number(value);
  }
}

void put(Writer& out, const TokenRules& rules) {
  out.number(rules.presence_penalty);
  out.number(rules.frequency_penalty);
  out.number(rules.repetition_penalty);
  out.numbers(rules.prompt_tokens);
  put(out, rules.logit_bias);
  out.numbers(rules.allowed);
  out.number(rules.min_tokens);
  out.numbers(rules.end_tokens);
  out.flag(rules.starts_thinking);
  out.number(rules.thinking.max_tokens);
  out.number(rules.thinking.end_token);
  out.numbers(rules.thinking.closing);
  out.text(rules.grammar);
}

void get(StepReader& in, TokenRules& rules) {
  in.number(rules.presence_penalty);
  in.number(rules.frequency_penalty);
  in.number(rules.repetition_penalty);
  in.numbers(rules.prompt_tokens);
  get(in, rules.logit_bias);
  in.numbers(rules.allowed);
  in.number(rules.min_tokens);
  in.numbers(rules.end_tokens);
  rules.starts_thinking = in.flag();
  in.number(rules.thinking.max_tokens);
  in.number(rules.thinking.end_token);
  in.numbers(rules.thinking.closing);
  in.text(rules.grammar);
}

void put(Writer& out, const std::vector<TokenLogprob>& logprobs) {
  out.count(logprobs.size());
  for (const TokenLogprob& entry : logprobs) {
    out.number(entry.token);
    out.number(entry.logprob);
    put(out, entry.top);
  }
}

void get(StepReader& in, std::vector<TokenLogprob>& logprobs) {
  logprobs.resize(in.count(min_logprob_bytes));
  for (TokenLogprob& entry : logprobs) {
    in.number(entry.token);
    in.number(entry.logprob);
    get(in, entry.top);
  }
}

void put(Writer& out, const LayerPlacement& experts) {
  out.count(experts.size());
  for (const auto& replicas : experts) {
    out.count(replicas.size());
    for (const Replica& r : replicas) {
      out.number(r.rank);
      out.number(r.share);
    }
  }
}

void get(StepReader& in, LayerPlacement& experts) {
  experts.resize(in.count(4));
  for (auto& replicas : experts) {
    replicas.resize(in.count(4 + 4));
    for (Replica& r : replicas) {
      in.number(r.rank);
      in.number(r.share);
    }
  }
}

}  // namespace

std::vector<std::byte> encode(const StepPlan& plan) {
  Writer out(Message::step);
  out.number(plan.step);
  out.number(plan.most_tokens);
  out.count(plan.start.size());
  for (const SequenceStart& start : plan.start) {
    out.number(start.sequence);
    out.number(start.sampling.temperature);
    out.number(start.sampling.top_p);
    out.number(start.sampling.top_k);
    out.number(start.sampling.min_p);
    out.number(start.sampling.seed);
    put(out, start.sampling.rules);
    out.number(start.logprobs);
    out.numbers(start.answer);
  }
  out.count(plan.chunks.size());
  for (const SequenceChunk& chunk : plan.chunks) {
    out.number(chunk.sequence);
    out.number(chunk.position);
    out.numbers(chunk.pages);
    out.numbers(chunk.tokens);
    out.number(chunk.drafts);
    out.flag(chunk.sample);
    out.flag(chunk.score);
    out.number(chunk.next_token);
  }
  out.numbers(plan.finish);
  out.count(plan.experts.size());
  for (const ExpertLayer& layer : plan.experts) {
    out.number(layer.layer);
    put(out, layer.experts);
  }
  return out.take();
}

StepPlan decode_step_plan(std::span<const std::byte> bytes) {
  StepReader in(bytes, Message::step, "step plan");
  StepPlan plan;
  in.number(plan.step);
  in.number(plan.most_tokens);
  plan.start.resize(in.count(min_start_bytes));
  for (SequenceStart& start : plan.start) {
    in.number(start.sequence);
    in.number(start.sampling.temperature);
    in.number(start.sampling.top_p);
    in.number(start.sampling.top_k);
    in.number(start.sampling.min_p);
    in.number(start.sampling.seed);
    get(in, start.sampling.rules);
    in.number(start.logprobs);
    in.numbers(start.answer);
  }
  plan.chunks.resize(in.count(min_chunk_bytes));
  for (SequenceChunk& chunk : plan.chunks) {
    in.number(chunk.sequence);
    in.number(chunk.position);
    in.numbers(chunk.pages);
    in.numbers(chunk.tokens);
    in.number(chunk.drafts);
    chunk.sample = in.flag();
    chunk.score = in.flag();
    in.number(chunk.next_token);
  }
  in.numbers(plan.finish);
  plan.experts.resize(in.count(4 + 4));
  for (ExpertLayer& layer : plan.experts) {
    in.number(layer.layer);
    get(in, layer.experts);
  }
  in.end();
  return plan;
}

std::vector<std::byte> encode(const StepResult& result) {
  Writer out(Message::result);
  out.number(result.step);
  out.count(result.outputs.size());
  for (const SequenceOutput& output : result.outputs) {
    out.number(output.sequence);
    out.numbers(output.tokens);
    out.flag(output.later);
    out.flag(output.overflowed);
    put(out, output.sampled);
    put(out, output.scored);
    out.numbers(output.drafts);
  }
  out.counters(result.expert_tokens);
  out.numbers(result.expert_work);
  out.number(result.compute_us);
  out.number(result.exchange_us);
  return out.take();
}

StepResult decode_step_result(std::span<const std::byte> bytes) {
  StepReader in(bytes, Message::result, "step result");
  StepResult result;
  in.number(result.step);
  result.outputs.resize(in.count(min_output_bytes));
  for (SequenceOutput& output : result.outputs) {
    in.number(output.sequence);
    in.numbers(output.tokens);
    output.later = in.flag();
    output.overflowed = in.flag();
    get(in, output.sampled);
    get(in, output.scored);
    in.numbers(output.drafts);
  }
  in.counters(result.expert_tokens);
  in.numbers(result.expert_work);
  in.number(result.compute_us);
  in.number(result.exchange_us);
  in.end();
  return result;
}

std::vector<std::byte> encode(const WorkerReady& ready) {
  Writer out(Message::ready);
  out.number(ready.epoch);
  out.flag(ready.cache_kept);
  out.flag(ready.outlives_one);
  out.number(ready.weight_bytes);
  out.number(ready.kv_bytes);
  out.number(ready.kv_pages);
  out.text(ready.backend);
  out.text(ready.host);
  return out.take();
}

WorkerReady decode_worker_ready(std::span<const std::byte> bytes) {
  StepReader in(bytes, Message::ready, "ready message");
  WorkerReady ready;
  in.number(ready.epoch);
  ready.cache_kept = in.flag();
  ready.outlives_one = in.flag();
  in.number(ready.weight_bytes);
  in.number(ready.kv_bytes);
  in.number(ready.kv_pages);
  in.text(ready.backend);
  in.text(ready.host);
  in.end();
  return ready;
}

std::vector<std::byte> encode(const Regroup& regroup) {
  Writer out(Message::regroup);
  out.number(regroup.epoch);
  out.numbers(regroup.members);
  out.flag(regroup.placement.tensor_parallel);
  out.flag(regroup.placement.sliced_experts);
  out.count(regroup.placement.experts.size());
  for (const LayerPlacement& layer : regroup.placement.experts) put(out, layer);
  return out.take();
}

Regroup decode_regroup(std::span<const std::byte> bytes) {
  StepReader in(bytes, Message::regroup, "regroup message");
  Regroup regroup;
  in.number(regroup.epoch);
  in.numbers(regroup.members);
  regroup.placement.ranks = static_cast<int>(regroup.members.size());
  regroup.placement.tensor_parallel = in.flag();
  regroup.placement.sliced_experts = in.flag();
  regroup.placement.experts.resize(in.count(4));
  for (LayerPlacement& layer : regroup.placement.experts) get(in, layer);
  in.end();
  return regroup;
}

std::vector<std::byte> encode(const Error& error) {
  std::vector<std::byte> payload{static_cast<std::byte>(error.exit_code)};
  for (const char* c = error.what(); *c; ++c) payload.push_back(static_cast<std::byte>(*c));
  return payload;
}

Error decode_failure(std::span<const std::byte> payload) {
  if (payload.size() < 2) return Error("a rank failed and did not say why");
  const bool known = payload[0] == static_cast<std::byte>(ExitCode::usage) ||
                     payload[0] == static_cast<std::byte>(ExitCode::does_not_fit);
  return Error(std::string(reinterpret_cast<const char*>(payload.data()) + 1, payload.size() - 1),
               known ? static_cast<ExitCode>(payload[0]) : ExitCode::failure);
}

}  // namespace shoal
