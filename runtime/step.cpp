#include "runtime/step.h"

#include <algorithm>
#include <bit>
#include <concepts>
#include <limits>
#include <string_view>
#include <type_traits>

#include "base/error.h"

// The binary form: fields in the order listed below, little-endian, fixed width; a vector or string is a u32 count and
// its elements. The first byte tells the kind of message, since a control frame that went astray should not decode by
// chance. Counters of experts take a byte each, and those too large for it follow in full behind the last: most are
// small, and R1 has 14,848 of them a rank and step, which rank 0 reads for all ranks.
namespace shoal {
namespace {

/// The byte of a counter that follows in full.
constexpr std::uint32_t large_counter = 255;

template <class T>
concept Number = std::integral<T> || std::floating_point<T>;
template <class T>
using Bits = std::conditional_t<sizeof(T) == 8, std::uint64_t, std::uint32_t>;

/// Messages are listed once for both ways: what is written is const, what is read is not.
template <class T, class Of>
concept ConstOrNot = std::same_as<std::remove_const_t<T>, Of>;

// What each message holds, for a Writer or a StepReader.

template <class Io>
void fields(Io& io, ConstOrNot<TokenRules> auto& r) {
  io(r.presence_penalty, r.frequency_penalty, r.repetition_penalty, r.prompt_tokens, r.logit_bias, r.allowed,
     r.min_tokens, r.end_tokens, r.starts_thinking, r.thinking.max_tokens, r.thinking.end_token, r.thinking.closing,
     r.grammar);
}
template <class Io>
void fields(Io& io, ConstOrNot<SequenceStart> auto& s) {
  io(s.sequence, s.sampling.temperature, s.sampling.top_p, s.sampling.top_k, s.sampling.min_p, s.sampling.seed,
     s.sampling.rules, s.logprobs, s.answer);
}
template <class Io>
void fields(Io& io, ConstOrNot<SequenceChunk> auto& c) {
  io(c.sequence, c.position, c.pages, c.tokens, c.drafts, c.sample, c.score, c.next_token);
}
template <class Io>
void fields(Io& io, ConstOrNot<Replica> auto& r) {
  io(r.rank, r.share);
}
template <class Io>
void fields(Io& io, ConstOrNot<ExpertLayer> auto& l) {
  io(l.layer, l.experts);
}
template <class Io>
void fields(Io& io, ConstOrNot<StepPlan> auto& p) {
  io(p.step, p.most_tokens, p.start, p.chunks, p.finish, p.experts);
}
template <class Io>
void fields(Io& io, ConstOrNot<TokenLogprob> auto& l) {
  io(l.token, l.logprob, l.top);
}
template <class Io>
void fields(Io& io, ConstOrNot<SequenceOutput> auto& o) {
  io(o.sequence, o.tokens, o.later, o.overflowed, o.sampled, o.scored, o.drafts);
}
template <class Io>
void fields(Io& io, ConstOrNot<StepResult> auto& r) {
  io(r.step, r.outputs);
  io.counters(r.expert_tokens);
  io(r.expert_work, r.compute_us, r.exchange_us);
}
template <class Io>
void fields(Io& io, ConstOrNot<WorkerReady> auto& r) {
  io(r.epoch, r.cache_kept, r.outlives_one, r.weight_bytes, r.kv_bytes, r.kv_pages, r.backend, r.host);
}
template <class Io>
void fields(Io& io, ConstOrNot<Regroup> auto& r) {  // placement.ranks: one for each member
  io(r.epoch, r.members, r.placement.tensor_parallel, r.placement.sliced_experts, r.placement.experts);
}

class Writer {
 public:
  template <class... T>
  void operator()(const T&... values) {
    (put(values), ...);
  }

  void counters(const std::vector<std::uint32_t>& values) {
    count(values.size());
    for (const std::uint32_t value : values) byte(static_cast<std::uint8_t>(std::min(value, large_counter)));
    for (const std::uint32_t value : values)
      if (value >= large_counter) put(value);
  }

  void byte(std::uint8_t value) { bytes_.push_back(static_cast<std::byte>(value)); }
  std::size_t size() const { return bytes_.size(); }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  void put(bool value) { byte(value ? 1 : 0); }
  template <Number T>
  void put(T value) {
    const auto bits = std::bit_cast<Bits<T>>(value);
    std::byte little[sizeof bits];
    for (unsigned i = 0; i < sizeof bits; ++i) little[i] = static_cast<std::byte>(bits >> (8 * i) & 0xFF);
    bytes_.insert(bytes_.end(), little, little + sizeof bits);
  }
  void put(const std::string& text) {
    count(text.size());
    const auto* const from = reinterpret_cast<const std::byte*>(text.data());
    bytes_.insert(bytes_.end(), from, from + text.size());
  }
  template <class First, class Second>
  void put(const std::pair<First, Second>& pair) {
    (*this)(pair.first, pair.second);
  }
  template <class T>
  void put(const std::vector<T>& values) {
    count(values.size());
    if constexpr (Number<T>) bytes_.reserve(bytes_.size() + values.size() * sizeof(T));
    for (const T& value : values) put(value);
  }
  template <class T>
  requires std::is_class_v<T>
  void put(const T& value) { fields(*this, value); }
  void count(std::size_t n) {
    if (n > std::numeric_limits<std::uint32_t>::max()) fail("a control message cannot hold {} elements", n);
    put(static_cast<std::uint32_t>(n));
  }

  std::vector<std::byte> bytes_;
};

/// Fewest bytes that an element takes: its fixed fields and empty vectors.
template <class T>
std::size_t least_bytes() {
  static const std::size_t bytes = [] {
    Writer out;
    out(T{});
    return out.size();
  }();
  return bytes;
}

class StepReader {
 public:
  StepReader(std::span<const std::byte> bytes, const char* name) : bytes_(bytes), name_(name) {}

  template <class... T>
  void operator()(T&... values) {
    (get(values), ...);
  }

  void counters(std::vector<std::uint32_t>& values) {
    values.resize(count(1));
    const std::string_view small(reinterpret_cast<const char*>(bytes_.data() + at_), values.size());
    at_ += small.size();
    std::transform(small.begin(), small.end(), values.begin(), [](char c) { return static_cast<std::uint8_t>(c); });
    constexpr char large = static_cast<char>(large_counter);
    for (auto i = small.find(large); i != small.npos; i = small.find(large, i + 1)) get(values[i]);
  }

  void begin(Message kind) {
    if (byte() != static_cast<std::uint8_t>(kind)) malformed("its first byte is of another kind of message");
  }
  void end() const {
    if (at_ != bytes_.size()) malformed("bytes are left over");
  }

 private:
  std::uint8_t byte() {
    need(1);
    return static_cast<std::uint8_t>(bytes_[at_++]);
  }
  void get(bool& value) {
    const std::uint8_t flag = byte();
    if (flag > 1) malformed("a flag is neither 0 nor 1");
    value = flag == 1;
  }
  template <Number T>
  void get(T& value) {
    need(sizeof(T));
    Bits<T> bits = 0;
    for (unsigned i = 0; i < sizeof bits; ++i) bits |= static_cast<Bits<T>>(bytes_[at_ + i]) << (8 * i);
    at_ += sizeof bits;
    value = std::bit_cast<T>(bits);
  }
  void get(std::string& text) {
    text.resize(count(1));
    for (char& c : text) c = static_cast<char>(byte());
  }
  template <class First, class Second>
  void get(std::pair<First, Second>& pair) {
    (*this)(pair.first, pair.second);
  }
  template <class T>
  void get(std::vector<T>& values) {
    values.resize(count(least_bytes<T>()));
    for (T& value : values) get(value);
  }
  template <class T>
  requires std::is_class_v<T>
  void get(T& value) { fields(*this, value); }

  /// The count of elements that take at least `element_bytes` each. Checked against what is left, so that a lie never
  /// makes us allocate much more than the message itself.
  std::size_t count(std::size_t element_bytes) {
    std::uint32_t n = 0;
    get(n);
    if (n > (bytes_.size() - at_) / element_bytes) malformed("it counts more elements than it has bytes for");
    return n;
  }
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

template <class T>
std::vector<std::byte> written(Message kind, const T& message) {
  Writer out;
  out.byte(static_cast<std::uint8_t>(kind));
  out(message);
  return out.take();
}

template <class T>
T read(std::span<const std::byte> bytes, Message kind, const char* name) {
  StepReader in(bytes, name);
  T message;
  in.begin(kind);
  in(message);
  in.end();
  return message;
}

}  // namespace

std::vector<std::byte> encode(const StepPlan& plan) { return written(Message::step, plan); }
std::vector<std::byte> encode(const StepResult& result) { return written(Message::result, result); }
std::vector<std::byte> encode(const WorkerReady& ready) { return written(Message::ready, ready); }
std::vector<std::byte> encode(const Regroup& regroup) { return written(Message::regroup, regroup); }

StepPlan decode_step_plan(std::span<const std::byte> bytes) {
  return read<StepPlan>(bytes, Message::step, "step plan");
}
StepResult decode_step_result(std::span<const std::byte> bytes) {
  return read<StepResult>(bytes, Message::result, "step result");
}
WorkerReady decode_worker_ready(std::span<const std::byte> bytes) {
  return read<WorkerReady>(bytes, Message::ready, "ready message");
}
Regroup decode_regroup(std::span<const std::byte> bytes) {
  auto regroup = read<Regroup>(bytes, Message::regroup, "regroup message");
  regroup.placement.ranks = static_cast<int>(regroup.members.size());
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
