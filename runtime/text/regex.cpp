#include "runtime/text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string>

#include "base/error.h"
#include "runtime/text/regex_syntax.h"
#include "runtime/text/utf8.h"

namespace shoal::text {
namespace {

// Bounds on one match. Real patterns need a few steps per byte; only a hostile pattern or one that backtracks over a
// huge text comes near.
constexpr size_t kJitStackStart = 32u << 10, kJitStackLimit = 8u << 20;
constexpr uint32_t kMatchSteps = 50'000'000;
constexpr uint32_t kInterpreterHeapKib = 64u << 10;
constexpr size_t kMaxPatternBytes = 64u << 10;

std::string error_text(int code) {
  unsigned char buffer[256];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

/// What a thread needs to run matches: one set for all patterns, since each reports a single range.
struct MatchState {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(kJitStackStart, kJitStackLimit, nullptr);

  MatchState() {
    if (!data || !context) fail("not enough memory to run regular expressions");
    pcre2_set_match_limit(context, kMatchSteps);
    pcre2_set_heap_limit(context, kInterpreterHeapKib);
    if (stack) pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~MatchState() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
  MatchState(const MatchState&) = delete;
  MatchState& operator=(const MatchState&) = delete;
};

MatchState& match_state() {
  static thread_local MatchState state;
  return state;
}

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  bool jit = false;
  std::string place;

  Code(std::string_view pattern, uint32_t options, std::string_view at) : place(at) {
    if (pattern.size() > kMaxPatternBytes) fail("{}: a regular expression of {} bytes is too long", at, pattern.size());
    std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)> context(
        pcre2_compile_context_create(nullptr), pcre2_compile_context_free);
    if (context) pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    int error = 0;
    PCRE2_SIZE offset = 0;
    code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options, &error, &offset,
                         context.get());
    if (!code) fail("{}: regular expression `{}`: {} (at byte {})", at, pattern, error_text(error), offset);
    jit = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
  }
  ~Code() { pcre2_code_free(code); }
  Code(const Code&) = delete;
  Code& operator=(const Code&) = delete;
};

Regex Regex::compile(std::string_view pattern, std::string_view place) {
  const std::string translated = oniguruma_to_pcre(pattern, place);
  return Regex(std::make_shared<const Code>(
      translated, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C | PCRE2_NO_AUTO_CAPTURE, place));
}

Regex Regex::literal(std::string_view text, std::string_view place) {
  if (!is_valid_utf8(text)) fail("{}: not UTF-8", place);
  return Regex(std::make_shared<const Code>(text, PCRE2_UTF | PCRE2_LITERAL, place));
}

void Regex::find_all(std::string_view text, std::vector<ByteRange>& matches) const {
  matches.clear();
  MatchState& state = match_state();
  // PCRE2 before 10.40 rejects a null subject even when its length is 0.
  const auto subject = reinterpret_cast<PCRE2_SPTR>(text.data() ? text.data() : "");
  const PCRE2_SIZE* range = pcre2_get_ovector_pointer(state.data);
  constexpr size_t kNone = ~size_t{0};
  size_t at = 0, last_end = kNone;
  while (at <= text.size()) {
    int rc = PCRE2_ERROR_JIT_STACKLIMIT;
    if (code_->jit)
      rc = pcre2_jit_match(code_->code, subject, text.size(), at, PCRE2_NO_UTF_CHECK, state.data, state.context);
    // The interpreter keeps its backtracking points on the heap, so it gets further than the JIT's stack.
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
      rc = pcre2_match(code_->code, subject, text.size(), at, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, state.data,
                       state.context);
    if (rc == PCRE2_ERROR_NOMATCH) return;
    if (rc < 0) fail("{}: a regular expression failed on this text: {}", code_->place, error_text(rc));
    const ByteRange found{range[0], range[1]};
    if (found.begin == found.end && found.end == last_end) {
      // An empty match where the last one ended: look again one character later.
      at += at < text.size() ? decode_utf8(text, at).size : 1;
      continue;
    }
    matches.push_back(found);
    at = last_end = found.end;
  }
}

}  // namespace shoal::text
