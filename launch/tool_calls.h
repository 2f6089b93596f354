#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "launch/request_fields.h"
#include "runtime/text/tokenizer.h"

namespace shoal {

/// How a model writes a call.
enum class ToolSyntax {
  deepseek,  // <｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\n{…}\n```<｜tool▁call▁end｜> (R1, V3), or
             // <｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{…}<｜tool▁call▁end｜> (V3.1)
  hermes  // <tool_call>\n{"name": NAME, "arguments": {…}}\n</tool_call> (Qwen and others)
};
ToolSyntax tool_syntax(const Tokenizer& tokenizer);

/// `tools` and `tool_choice` of a request.
struct ToolFields {
  using Json = nlohmann::ordered_json;

  Json tools = Json::array();  // those the model may call, as OpenAI writes them
  bool must_call = false;      // the answer has to be a call of one of them
  bool one_call = false;       // `parallel_tool_calls` is false
};
ToolFields read_tools(RequestFields& fields);

/// What the answer must match (GBNF) where a tool has to be called. Throws Error where a tool's parameters cannot be
/// expressed.
std::string tool_call_grammar(const ToolFields& fields, ToolSyntax syntax);

/// For models whose chat template does not know of tools: what there is to call, and how.
std::string tool_instructions(const ToolFields& fields, ToolSyntax syntax);

struct ToolCall {
  std::string name, arguments;  // JSON, as the model wrote it
};

/// Takes calls out of an answer's text, piece by piece. A call is given out when it is whole.
class ToolCallFinder {
 public:
  explicit ToolCallFinder(ToolSyntax syntax) : syntax_(syntax) {}

  struct Piece {
    std::string content;
    std::vector<ToolCall> calls;
  };
  Piece push(std::string_view text);
  /// No more text comes; a call that is not whole is text.
  Piece finish();

 private:
  void advance(Piece& piece, bool last);
  bool parse_call(std::string_view body, ToolCall& call) const;

  const ToolSyntax syntax_;
  std::string held_;
  bool called_ = false;  // white space between and behind calls is dropped
};

}  // namespace shoal
