#include "runtime/text/chat_template.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "base/error.h"
#include "tests/unit/scratch_folder.h"

namespace shoal {
namespace {

using Json = ChatTemplate::Json;

const Json kHello = Json::parse(R"([{"role": "user", "content": "Hello"}])");
const Json kTools = Json::parse(R"([{"type": "function", "function": {"name": "f"}}])");

std::string render(const std::string& text, const Json& messages = kHello, const Json& extra = Json::object()) {
  return ChatTemplate(text, "t.jinja", {{"bos_token", "<s>"}}).render(messages, nullptr, true, &extra);
}

std::string fault_of(const std::string& text, const Json& messages = kHello) {
  return error_of([&] { render(text, messages); });
}

std::string repeated(std::string_view text, size_t times) {
  std::string out;
  for (size_t i = 0; i < times; ++i) out += text;
  return out;
}

class ChatTemplateFolder : public ::testing::Test {
 protected:
  std::optional<ChatTemplate> load() { return ChatTemplate::from_model_dir(folder_.path()); }
  std::string load_error() {
    return error_of([this] { load(); });
  }

  ScratchFolder folder_;
};

TEST_F(ChatTemplateFolder, NoneWithoutATemplate) {
  EXPECT_FALSE(load());
  folder_.write("tokenizer_config.json", R"({"bos_token": "<s>"})");
  EXPECT_FALSE(load());
  folder_.write("tokenizer_config.json", R"({"chat_template": null})");
  EXPECT_FALSE(load());
}

TEST_F(ChatTemplateFolder, TemplateOfTokenizerConfig) {
  folder_.write("tokenizer_config.json",
                R"({"bos_token": {"__type": "AddedToken", "content": "<s>"}, "eos_token": "</s>", "unk_token": null,
                    "add_bos_token": true, "chat_template":
                    "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{{ unk_token is defined }}{{ add_generation_prompt }}{{ tools is none }}{{ documents is none }}"})");
  EXPECT_EQ(load()->render(kHello, nullptr, true), "<s>Hello</s>FalseTrueTrueTrue");
  EXPECT_EQ(load()->render(kHello, &kTools, false), "<s>Hello</s>FalseFalseFalseTrue");
}

TEST_F(ChatTemplateFolder, TemplateFileWins) {
  folder_.write("tokenizer_config.json", R"({"bos_token": "<s>", "chat_template": "config"})");
  folder_.write("chat_template.jinja", "{{ bos_token }}file\n");
  EXPECT_EQ(load()->render(kHello, nullptr, true), "<s>file");
}

TEST_F(ChatTemplateFolder, TemplateFileAlone) {
  folder_.write("chat_template.jinja", "{{ bos_token is defined }}");
  EXPECT_EQ(load()->render(kHello, nullptr, true), "False");
}

TEST_F(ChatTemplateFolder, NamedTemplates) {
  folder_.write("tokenizer_config.json",
                R"({"chat_template": [{"name": "tool_use", "template": "T{{ tools|length }}"},
                                      {"name": "default", "template": "D"}, {"name": "rag", "template": "R"}]})");
  const Json none = nullptr;
  EXPECT_EQ(load()->render(kHello, nullptr, true), "D");
  EXPECT_EQ(load()->render(kHello, &none, true), "D");
  EXPECT_EQ(load()->render(kHello, &kTools, true), "T1");
  folder_.write("tokenizer_config.json", R"({"chat_template": [{"name": "default", "template": "D"}]})");
  EXPECT_EQ(load()->render(kHello, &kTools, true), "D");
}

TEST_F(ChatTemplateFolder, ErrorsNameTheFileAndLine) {
  folder_.write("tokenizer_config.json", R"({"chat_template": [{"name": "rag", "template": "R"}]})");
  EXPECT_PRED2(contains, load_error(), "tokenizer_config.json");
  EXPECT_PRED2(contains, load_error(), "default");
  folder_.write("tokenizer_config.json", R"({"chat_template": 5})");
  EXPECT_PRED2(contains, load_error(), "chat_template");
  folder_.write("tokenizer_config.json", R"({"bos_token": 5, "chat_template": ""})");
  EXPECT_PRED2(contains, load_error(), "bos_token");
  folder_.write("tokenizer_config.json", "{");
  EXPECT_PRED2(contains, load_error(), "tokenizer_config.json");
  folder_.write("tokenizer_config.json", R"({"chat_template": "a\n{% if x %}\n"})");
  EXPECT_PRED2(contains, load_error(), "tokenizer_config.json: chat_template:2: ");
  folder_.write("chat_template.jinja", "a\n\n{{ 1 + }}");
  EXPECT_PRED2(contains, load_error(), "chat_template.jinja:3: expected an expression, got '}}'");
  folder_.write("chat_template.jinja", "\n{{ messages[0].content\n + 1 }}");
  EXPECT_PRED2(contains, error_of([this] { load()->render(kHello, nullptr, true); }), "line 3: ");
  folder_.write("chat_template.jinja", "\xff");
  EXPECT_PRED2(contains, load_error(), "UTF-8");
}

TEST(ChatTemplate, WhatRaiseExceptionSaysIsTheError) {
  EXPECT_EQ(fault_of("{{ raise_exception('Roles must alternate: ' ~ messages|length) }}"), "Roles must alternate: 1");
}

TEST(ChatTemplate, OtherFaultsNameThePlace) {
  EXPECT_EQ(fault_of("a\n{{ nope.x }}"), "line 2: 'nope' is undefined");
  EXPECT_EQ(fault_of("{{ messages[0].nope.x }}"), "line 1: 'dict object' has no attribute 'nope'");
  EXPECT_EQ(fault_of("{% if false %}{% include 'x' %}{% endif %}{{ 1 / 0 }}"), "line 1: division by zero");
  EXPECT_PRED2(contains, fault_of("{% include 'x' %}"), "no other templates");
  EXPECT_PRED2(contains, fault_of("{{ messages.append(1) }}"), "unsafe");
  EXPECT_PRED2(contains, fault_of("{{ 9223372036854775807 + 1 }}"), "64 bits");
}

TEST(ChatTemplate, ExtraVariablesWinOverSpecialTokens) {
  const Json extra = Json::parse(R"({"bos_token": "<b>", "enable_thinking": false, "messages": []})");
  EXPECT_EQ(render("{{ bos_token }}{{ enable_thinking }}{{ messages|length }}", kHello, extra), "<b>False1");
}

TEST(ChatTemplate, BundledDemoModel) {
  const auto chat = ChatTemplate::from_model_dir(SHOAL_SOURCE_DIR "/launch/demo-model");
  ASSERT_TRUE(chat);
  EXPECT_EQ(chat->render(kHello, nullptr, true), "<｜begin▁of▁sentence｜><｜User｜>Hello<｜Assistant｜><think>\n");
}

TEST(ChatTemplate, CopiesRenderOnThreads) {
  const ChatTemplate chat(
      "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% macro w(x) %}"
      "[{{ x }}{{ ns.n }}]{% endmacro %}{{ w(m.content) }}{% endfor %}",
      "t", {});
  Json messages = Json::array();
  std::string want;
  for (int i = 0; i < 50; ++i) {
    messages.push_back({{"role", "user"}, {"content", std::to_string(i)}});
    want += "[" + std::to_string(i) + std::to_string(i + 1) + "]";
  }
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, copy = chat] {
      for (int i = 0; i < 50; ++i) wrong += (i % 2 ? copy : chat).render(messages, nullptr, true) != want;
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(ChatTemplate, MessagesThatAreNotUtf8OrNestedDeeply) {
  EXPECT_EQ(render("{{ messages[0] }}", Json::array({"a\xff"})), "a\uFFFD");
  Json deep = 1;
  for (int i = 0; i < 100'000; ++i) deep = Json::array({std::move(deep)});
  EXPECT_PRED2(contains, fault_of("x", deep), "nested");
  EXPECT_PRED2(contains, fault_of("x", Json::array({18446744073709551615u})), "64 bits");
}

long peak_memory_kb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

/// Templates that would take forever, all memory or all of the stack. Each must end with an Error, soon.
struct Hostile {
  const char* name;
  std::string text;
};
/// By its name: brackets without their ends in a list of tests confuse CMake 3.22.
void PrintTo(const Hostile& hostile, std::ostream* out) { *out << hostile.name; }

class HostileTemplate : public ::testing::TestWithParam<Hostile> {};

TEST_P(HostileTemplate, EndsWithAnErrorSoonAndInBoundedMemory) {
  [[maybe_unused]] const long memory_before = peak_memory_kb();
  const auto start = std::chrono::steady_clock::now();
  EXPECT_NE(fault_of(GetParam().text), "");
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  EXPECT_LT(seconds.count(), 20);  // about 1 on a machine that does nothing else
#if !defined(__SANITIZE_ADDRESS__)
  EXPECT_LT(peak_memory_kb() - memory_before, 800'000);
#endif
}

INSTANTIATE_TEST_SUITE_P(
    ChatTemplate, HostileTemplate,
    ::testing::ValuesIn(std::vector<Hostile>{
        {"loops", "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"},
        {"loops_that_print", "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"},
        {"comprehension", repeated("{% for a in range(9999) %}", 20) + repeated("{% endfor %}", 20)},
        {"huge_range", "{{ range(9000000000000000000) }}"},
        {"range_over_everything", "{{ range(-9223372036854775807, 9223372036854775807) }}"},
        {"doubling", "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}"},
        {"repeating", "{{ 'x' * 9000000000000000000 }}"},
        {"repeating_list", "{{ [1] * 9000000000000000000 }}"},
        {"repeating_nothing", "{{ ([] * 9000000000000000000)|length / 0 }}{{ ('' * 9000000000000000000)|length }}"},
        {"list_of_itself", "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}"},
        {"shared_lists", "{% set ns = namespace(l=[1]) %}{% for i in range(200) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}"},
        {"shared_lists_compared", "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(200) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}"},
        {"shared_lists_to_json", "{% set ns = namespace(l=[1]) %}{% for i in range(200) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l|tojson }}"},
        {"shared_tuples_as_keys", "{% set ns = namespace(l=(1,), m=(1,)) %}{% for i in range(60) %}{% set ns.l = (ns.l, ns.l) %}{% set ns.m = (ns.m, ns.m) %}{% endfor %}{{ {ns.l: 1}[ns.m] }}"},
        {"shared_tuples_unique", "{% set ns = namespace(l=(1,), m=(1,)) %}{% for i in range(60) %}{% set ns.l = (ns.l, ns.l) %}{% set ns.m = (ns.m, ns.m) %}{% endfor %}{{ [ns.l, ns.m]|unique|list }}"},
        {"endless_macro", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}"},
        {"branching_macro", "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}"},
        {"endless_caller", "{% macro m() %}{% call m() %}{{ caller() }}{% endcall %}{% endmacro %}{{ m() }}"},
        {"endless_recursive_loop", "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}"},
        {"parentheses", "{{ " + repeated("(", 100'000) + "1" + repeated(")", 100'000) + " }}"},
        {"brackets", "{{ " + repeated("[", 100'000) + repeated("]", 100'000) + " }}"},
        {"braces", "{{ " + repeated("{1: ", 100'000) + "1" + repeated("}", 100'000) + " }}"},
        {"subscripts", "{{ x" + repeated("[x", 100'000) + repeated("]", 100'000) + " }}"},
        {"calls", "{{ x" + repeated("(x", 100'000) + repeated(")", 100'000) + " }}"},
        {"nots", "{{ " + repeated("not ", 100'000) + "1 }}"},
        {"minuses", "{{ " + repeated("- ", 100'000) + "1 }}"},
        {"conditionals", "{{ " + repeated("1 if 1 else ", 100'000) + "1 }}"},
        {"conditionals_without_else", "{{ 1 " + repeated("if 1 ", 100'000) + " }}"},
        {"nested_ifs", repeated("{% if 1 %}", 100'000) + repeated("{% endif %}", 100'000)},
        {"nested_targets", "{% for " + repeated("(", 100'000) + "a" + repeated(")", 100'000) + " in [] %}{% endfor %}"},
        {"many_elifs", "{% if 0 %}" + repeated("{% elif 0 %}", 100'000) + "{% endif %}{{ 1 / 0 }}"},
        {"long_sum", "{{ 1" + repeated(" + 1", 100'000) + " + 'a' }}"},
        {"long_chain", "{{ x" + repeated(".x", 100'000) + " }}"},
        {"filters_in_filters", "{% set ns = namespace(g=[1]) %}{% for i in range(99999) %}{% set ns.g = ns.g|map('string') %}{% endfor %}"},
        {"bound_methods", "{% set ns = namespace(f='x'.upper) %}{% for i in range(99999) %}{% set ns.f = [ns.f] %}{% endfor %}"},
        {"self_in_namespace", "{% set ns = namespace() %}{% set ns.ns = ns %}{{ ns }}"},
        {"chain_of_namespaces", "{% set ns = namespace(n=1) %}{% for i in range(99999) %}{% set ns.n = namespace(n=ns.n) %}{% endfor %}{{ ns }}"},
        {"chain_of_macros", "{% set ns = namespace(f=1) %}{% for i in range(99999) %}{% set before = ns.f %}{% macro g() %}{{ before() }}{% endmacro %}{% set ns.f = g %}{% endfor %}{{ ns.f() }}"},
        {"chain_of_callers", "{% set ns = namespace(f=1) %}{% macro m() %}{% set ns.f = caller %}{% endmacro %}{% for i in range(99999) %}{% set before = ns.f %}{% call m() %}{{ before() }}{% endcall %}{% endfor %}{{ ns.f() }}"},
        {"chain_of_loops", "{% set ns = namespace(l=1) %}{% for i in range(99999) %}{% set before = ns.l %}{% for j in [1] %}{% set ns.l = loop %}{% endfor %}{% endfor %}{{ ns.l.x.y }}"},
        {"loop_in_itself", "{% for i in range(9) %}{{ loop.changed(loop) }}{% endfor %}{{ 1 / 0 }}"},
        {"replacing", "{% set s = 'x' * 9999 %}{{ s.replace('', s).replace('', s) }}"},
        {"joining", "{% set s = 'x' * 9999 %}{{ s.join(s).join(s) }}"},
        {"padding", "{{ 'x'.center(9000000000000000000) }}"},
        {"zeros", "{{ 'x'.zfill(9000000000000000000) }}"},
        {"tabs", "{{ '\\t'.expandtabs(9000000000000000000) }}"},
        {"indenting", "{{ 'x'|indent(9000000000000000000, true) }}"},
        {"indented_json", "{{ [[1]]|tojson(indent=9000000000000000000) }}"},
        {"batching", "{{ [1]|batch(9000000000000000000, 1)|list }}"},
        {"slicing", "{{ [1]|slice(9000000000000000000)|list }}"},
        {"format_width", "{{ '%9000000000000000000d' % 1 }}"},
        {"format_precision", "{{ '%.999999999f' % 1 }}"},
        {"brace_format_width", "{{ '{:9999999999}'.format(1) }}"},
        {"brace_format_nested", "{{ '" + repeated("{:", 10'000) + repeated("}", 10'000) + "'.format(1) }}"},
        {"power", "{{ 9 ** 9999999 }}"},
        {"deep_powers", "{{ 10.0 ** 400 }}"},
        {"slow_find", "{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{{ s.rfind('b' + s[:5000000]) }}{% endfor %}"},
        {"slow_equality", "{% set s = 'a' * 9999999 %}{% set t = 'a' * 9999999 %}{% for i in range(99999) %}{{ s == t }}{% endfor %}"},
        {"slow_keys", "{% set s = 'a' * 9999999 %}{% set d = {s: 1} %}{% for i in range(99999) %}{{ d['a' * 9999999] }}{% endfor %}"},
        {"slow_strip", "{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{{ s.strip('bcdefgha')|length }}{% endfor %}"},
        {"slow_index", "{% set s = 'é' * 9999999 %}{% for i in range(99999) %}{{ s[-1] }}{% endfor %}"},
        {"slow_length", "{% set s = 'é' * 9999999 %}{% for i in range(99999) %}{{ s|length }}{% endfor %}"},
        {"slow_test", "{% set s = 'a' * 9999999 %}{% for i in range(99999) %}{{ s is lower }}{% endfor %}"},
        {"slow_strftime", "{% set s = '%c' * 999999 %}{% for i in range(99999) %}{{ strftime_now(s)|length }}{% endfor %}"},
        {"many_names", repeated("{% set a = 1 %}", 10) + "{{ dict(**dict(range(99999)|map('string')|batch(2)))|length / 0 }}"},
        {"many_arguments", "{% macro m() %}{{ kwargs|length }}{% endmacro %}{% set d = dict(range(99998)|map('string')|batch(2)) %}{% for i in range(99999) %}{{ m(**d) }}{% endfor %}"},
        {"many_variables", [] {
           std::string text;
           for (int i = 0; i < 20'000; ++i) text += "{% set v" + std::to_string(i) + " = 1 %}";
           return text + "{% for i in range(99999) %}{% for j in range(99999) %}{{ v19999 }}{% endfor %}{% endfor %}";
         }()},
    }),
    [](const auto& test) { return std::string(test.param.name); });

/// What an honest template may do with much text: the bounds must leave room for it.
TEST(ChatTemplate, LongConversationsRender) {
  Json messages = Json::array();
  for (int i = 0; i < 2000; ++i)
    messages.push_back({{"role", i % 2 ? "assistant" : "user"}, {"content", std::string(2000, 'x')}});
  const std::string loop =
      "{% set ns = namespace(out='', last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = "
      "loop.index0 %}{% endif %}{% endfor %}{% for m in messages %}{{ '<|' ~ m.role ~ '|>' + m.content.strip() + '\n' "
      "}}{% if '</think>' in m.content %}{{ m.content.split('</think>')[-1] }}{% endif %}{% if loop.index0 > ns.last "
      "%}x{% endif %}{% endfor %}";
  EXPECT_GT(render(loop, messages).size(), 4'000'000u);
}

}  // namespace
}  // namespace shoal
