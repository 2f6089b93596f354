// libFuzzer target: any text taken as a chat template either renders or ends with an Error, in bounded time and memory.
// The input is a template, a zero byte, and JSON for `messages` (a conversation of its own where that is no JSON).
#include <string>
#include <string_view>

#include "base/error.h"
#include "runtime/text/chat_template.h"

namespace {

using Json = nlohmann::ordered_json;

const Json kTools = Json::parse(R"([{"type": "function", "function": {"name": "f", "description": "d\n",
  "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}}}])");

const Json kMessages = Json::parse(R"([
  {"role": "system", "content": "S"}, {"role": "user", "content": "Hé 😀\n"},
  {"role": "assistant", "content": "<think>a</think>b", "reasoning_content": "r",
   "tool_calls": [{"id": "call00001", "type": "function", "function": {"name": "f", "arguments": {"x": [1, 2.5, null]}}}]},
  {"role": "tool", "content": "{}", "name": "f"}, {"role": "user", "content": [{"type": "text", "text": "t"}]}])");

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t zero = input.find('\0');
  Json messages = zero == input.npos ? kMessages : Json::parse(input.substr(zero + 1), nullptr, false);
  if (messages.is_discarded()) messages = kMessages;
  try {
    const shoal::ChatTemplate chat(std::string(input.substr(0, zero)), "fuzz", {{"bos_token", "<s>"}});
    static_cast<void>(chat.render(messages, size % 2 ? &kTools : nullptr, true));
  } catch (const shoal::Error&) {
  }
  return 0;
}
