#include "launch/tool_calls.h"

#include <gtest/gtest.h>

#include <random>

namespace shoal {
namespace {

struct Found {
  std::string content;
  std::vector<ToolCall> calls;
};

/// Feeds the text in random pieces, as tokens would come.
Found find(ToolSyntax syntax, const std::string& text, unsigned seed) {
  std::mt19937 random(seed);
  ToolCallFinder finder(syntax);
  Found found;
  const auto take = [&](ToolCallFinder::Piece piece) {
    found.content += piece.content;
    for (ToolCall& call : piece.calls) found.calls.push_back(std::move(call));
  };
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t n = 1 + random() % 7;
    take(finder.push(std::string_view(text).substr(at, n)));
    at += n;
  }
  take(finder.finish());
  return found;
}

void expect(ToolSyntax syntax, const std::string& text, const std::string& content, const std::vector<ToolCall>& calls) {
  for (unsigned seed = 0; seed < 50; ++seed) {
    const Found found = find(syntax, text, seed);
    EXPECT_EQ(found.content, content) << text;
    ASSERT_EQ(found.calls.size(), calls.size()) << text;
    for (std::size_t i = 0; i < calls.size(); ++i) {
      EXPECT_EQ(found.calls[i].name, calls[i].name);
      EXPECT_EQ(found.calls[i].arguments, calls[i].arguments);
    }
  }
}

TEST(ToolCalls, TheWayR1WritesThem) {
  expect(ToolSyntax::deepseek,
         "Let me see.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{\"a\": 1}\n```"
         "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜>"
         "<｜tool▁calls▁end｜>",
         "Let me see.", {{"add", "{\"a\": 1}"}, {"now", "{}"}});
}

TEST(ToolCalls, TheWayV31WritesThem) {
  expect(ToolSyntax::deepseek,
         "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{\"a\": \"```\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "",
         {{"add", "{\"a\": \"```\"}"}});
}

TEST(ToolCalls, TheWayHermesWritesThem) {
  expect(ToolSyntax::hermes,
         "Yes.\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": [2]}}\n</tool_call>\n<tool_call>"
         "{\"name\": \"now\"}</tool_call>",
         "Yes.\n", {{"add", "{\"a\":1,\"b\":[2]}"}, {"now", "{}"}});
}

TEST(ToolCalls, TextWithoutCallsStaysAsItIs) {
  for (const char* text : {"plain", "a < b, <｜tool and <tool_cal", "  spaces  ", ""}) {
    expect(ToolSyntax::deepseek, text, text, {});
    expect(ToolSyntax::hermes, text, text, {});
  }
}

TEST(ToolCalls, WhatIsNoWholeCallIsText) {
  expect(ToolSyntax::hermes, "<tool_call>{\"name\": 3}</tool_call>", "<tool_call>{\"name\": 3}</tool_call>", {});
  expect(ToolSyntax::hermes, "<tool_call>{\"name\": \"a\"", "<tool_call>{\"name\": \"a\"", {});
  expect(ToolSyntax::deepseek, "<｜tool▁call▁begin｜>function<｜tool▁sep｜>a",
         "<｜tool▁call▁begin｜>function<｜tool▁sep｜>a", {});
}

}  // namespace
}  // namespace shoal
