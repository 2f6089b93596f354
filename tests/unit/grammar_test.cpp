#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <regex>
#include <set>

#include "base/error.h"
#include "runtime/grammar/automaton.h"
#include "runtime/grammar/gbnf.h"
#include "runtime/grammar/gbnf_text.h"
#include "runtime/grammar/json_schema.h"
#include "runtime/grammar/token_grammar.h"
#include "runtime/grammar/utf8_ranges.h"
#include "runtime/text/utf8.h"

namespace shoal::grammar {
namespace {

using Random = std::mt19937_64;

std::shared_ptr<const Network> network(std::string_view gbnf) {
  return std::make_shared<const Network>(parse_gbnf(gbnf));
}

bool matches(Automaton& automaton, std::string_view text) {
  Automaton::State state = automaton.start();
  for (const char c : text) state = automaton.after(state, static_cast<std::uint8_t>(c));
  return state != Automaton::dead && automaton.accepts(state);
}
bool matches(const char* gbnf, std::string_view text) {
  Automaton automaton(network(gbnf));
  return matches(automaton, text);
}

std::string repeated(std::string_view text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

std::string why_refused(std::string_view gbnf) {
  try {
    parse_gbnf(gbnf);
  } catch (const Error& error) {
    return error.what();
  }
  return "taken";
}

constexpr const char* json_gbnf = R"(
root   ::= ws value ws
value  ::= object | array | string | number | "true" | "false" | "null"
object ::= "{" ws ( member ( "," ws member )* )? "}"   # as RFC 8259 has it
member ::= string ws ":" ws value ws
array  ::= "[" ws ( value ws ( "," ws value ws )* )? "]"
string ::= "\"" ( [^"\\\x00-\x1F] | "\\" ( ["\\/bfnrt] | "u" [0-9a-fA-F]{4} ) )* "\""
number ::= "-"? ( "0" | [1-9] [0-9]* ) ( "." [0-9]+ )? ( [eE] [-+]? [0-9]+ )?
ws     ::= [ \t\n\r]*
)";

TEST(Utf8Ranges, EveryCharacterOfARangeAndNoOther) {
  Random random(1);
  for (int i = 0; i < 300; ++i) {
    const auto any = [&] { return static_cast<char32_t>(random() % (i % 2 ? 0x110000 : 0x900)); };
    char32_t low = any(), high = any();
    if (low > high) std::swap(low, high);
    const auto rows = utf8_ranges({{low, high}});
    for (int j = 0; j < 200; ++j) {
      const char32_t code =
          j < 4 ? std::array<char32_t, 4>{low, high, low - 1, high + 1}[static_cast<unsigned>(j)] : any();
      if (code > 0x10FFFF || (code >= 0xD800 && code <= 0xDFFF)) continue;
      std::string bytes;
      text::append_utf8(bytes, code);
      int found = 0;
      for (const ByteRanges& row : rows) {
        bool in = static_cast<std::size_t>(row.length) == bytes.size();
        for (std::size_t k = 0; in && k < bytes.size(); ++k) {
          const auto byte = static_cast<std::uint8_t>(bytes[k]);
          in = byte >= row.bytes[k].first && byte <= row.bytes[k].second;
        }
        found += in;
      }
      EXPECT_EQ(found, code >= low && code <= high ? 1 : 0)
          << std::hex << static_cast<unsigned>(low) << " to " << static_cast<unsigned>(high) << ": "
          << static_cast<unsigned>(code);
    }
  }
}

TEST(Gbnf, LiteralsClassesAndRepetitions) {
  EXPECT_TRUE(matches(R"(root ::= "yes" | "no")", "no"));
  EXPECT_FALSE(matches(R"(root ::= "yes" | "no")", "n"));
  EXPECT_TRUE(matches("root ::= [a-c]{2,3} \"!\"?", "abc!"));
  EXPECT_FALSE(matches("root ::= [a-c]{2,3} \"!\"?", "abca"));
  EXPECT_TRUE(matches("root ::= (\"a\" | \"b\")+ [^x-z]", "abab\xC3\xA9"));
  EXPECT_FALSE(matches("root ::= [^x-z]", "\xC3"));
  EXPECT_TRUE(matches(R"(root ::= "\u00e9\x41\U0001F600\"\\\n")",
                      "\xC3\xA9"
                      "A\xF0\x9F\x98\x80\"\\\n"));
  EXPECT_TRUE(matches("root ::= .{3}", "a\xE6\xBC\xA2z"));
  EXPECT_TRUE(matches("root ::= (\"a\"*)* \"b\"", "aab"));  // loops in loops come to an end
  EXPECT_TRUE(matches("# first\nroot ::=\n  x |\n  y # of two\nx ::= \"x\"\ny ::= (\n  \"y\"\n)\n", "y"));
  EXPECT_TRUE(matches("root ::= \"a\"\n  | \"b\"\n", "b"));
  EXPECT_TRUE(matches("root ::= \"\"", ""));
}

TEST(Gbnf, NestingIsCounted) {
  const char* brackets = "root ::= \"(\" root \")\" | \"x\"";
  std::string deep(3000, '(');
  deep += 'x' + std::string(3000, ')');
  EXPECT_TRUE(matches(brackets, deep));
  EXPECT_FALSE(matches(brackets, deep + ")"));
}

TEST(Gbnf, FaultsAreNamedWithTheirLine) {
  EXPECT_THAT(why_refused("root ::= \"a\"\nb ::= [a"), testing::HasSubstr("line 2"));
  EXPECT_THAT(why_refused("b ::= \"a\""), testing::HasSubstr("no rule 'root'"));
  EXPECT_THAT(why_refused("root ::= other"), testing::HasSubstr("no rule 'other'"));
  EXPECT_THAT(why_refused("root ::= root \"a\" | \"a\""), testing::HasSubstr("left recursion"));
  EXPECT_THAT(why_refused("root ::= \"x\"? a\na ::= root | \"a\""), testing::HasSubstr("left recursion"));
  EXPECT_THAT(why_refused("root ::= (\"a\"{1000}){1000}"), testing::HasSubstr("too large"));
  EXPECT_THAT(why_refused("root ::= " + std::string(5000, '(')), testing::HasSubstr("too deep"));
  EXPECT_EQ(why_refused("root ::= \"\"{100000}{100000}{100000} \"a\""), "taken");  // and not followed for ever
  EXPECT_THAT(why_refused("root ::= (" + repeated("\"\"", 50000) + "\"a\"){100000}"), testing::HasSubstr("too large"));
  EXPECT_THAT(why_refused("root ::= ([" + repeated("\\uD800", 40000) + "] | \"a\"){100000}"),
              testing::HasSubstr("too large"));
  EXPECT_THAT(why_refused("root ::= \"a\"" + std::string(max_gbnf_bytes, ' ')), testing::HasSubstr("more than"));
  for (const char* wrong : {"root", "root ::= \"", "root ::= )", "root ::= \"a\"{2", "root ::= \"a\"{3,2}",
                            "root ::= [b-a]", "root ::= \"\\q\"", "root ::= \"\\xg0\"", "root ::= \"\xFF\"",
                            "root ::= \"a\"\nroot ::= \"b\"", "root ::= \"a\" %"}) {
    EXPECT_NE(why_refused(wrong), "taken") << wrong;
  }
}

/// Whether rules of references alone, each of which may be left out or not, can begin with themselves.
TEST(Gbnf, LeftRecursionIsFoundHoweverManyRulesMatchNothing) {
  struct Reference {
    std::size_t rule;
    bool optional;
  };
  Random random(8);
  int recursive = 0;
  for (int i = 0; i < 2000; ++i) {
    // Sequences of references; without any, the rule matches nothing or "x".
    std::vector<std::vector<Reference>> rules(2 + random() % 8);
    std::string gbnf;
    std::vector<bool> empty(rules.size());
    for (std::size_t at = 0; at < rules.size(); ++at) {
      gbnf += fmt::format("{} ::=", at ? fmt::format("r{}", at) : "root");
      for (auto n = random() % 3; n > 0; --n) {
        rules[at].push_back({1 + random() % (rules.size() - 1), random() % 6 == 0});
        gbnf += fmt::format(" r{}{}", rules[at].back().rule, rules[at].back().optional ? "?" : "");
      }
      empty[at] = rules[at].empty() && random() % 2;
      if (rules[at].empty()) gbnf += empty[at] ? " \"\"" : " \"x\"";
      gbnf += '\n';
    }
    const auto passes = [&](const Reference& r) { return r.optional || empty[r.rule]; };
    for (std::size_t round = 0; round < rules.size(); ++round) {
      for (std::size_t at = 0; at < rules.size(); ++at)
        empty[at] = empty[at] || (!rules[at].empty() && std::ranges::all_of(rules[at], passes));
    }
    std::vector<std::vector<bool>> begins(rules.size(), std::vector<bool>(rules.size()));
    for (std::size_t at = 0; at < rules.size(); ++at) {
      for (const Reference& r : rules[at]) {
        begins[at][r.rule] = true;
        if (!passes(r)) break;
      }
    }
    for (std::size_t via = 0; via < rules.size(); ++via) {
      for (std::size_t from = 0; from < rules.size(); ++from) {
        for (std::size_t to = 0; to < rules.size(); ++to)
          begins[from][to] = begins[from][to] || (begins[from][via] && begins[via][to]);
      }
    }
    bool any = false;
    for (std::size_t at = 0; at < rules.size(); ++at) any = any || begins[at][at];
    EXPECT_EQ(why_refused(gbnf).find("left recursion") != std::string::npos, any) << gbnf;
    recursive += any;
  }
  EXPECT_GT(recursive, 400);
  EXPECT_LT(recursive, 1600);
}

/// Rules that each call the next one twice, the last of which may match nothing.
std::string doubled(const std::string& first, int rules) {
  std::string gbnf = first + " ::= d1 d1\n";
  for (int i = 1; i < rules; ++i) gbnf += fmt::format("d{0} ::= d{1} d{1}\n", i, i + 1);
  return gbnf + fmt::format("d{} ::= \"x\"?\n", rules);
}

TEST(Automaton, RulesThatDoubleTheWaysAreNotFollowed) {
  EXPECT_NO_THROW(check_grammar(doubled("root", 10)));
  EXPECT_THROW(check_grammar(doubled("root", 30)), Error);
  // Behind a byte they are a dead end.
  const std::string later = "root ::= \"a\" d0 | \"ab\"\n" + doubled("d0", 30);
  EXPECT_NO_THROW(check_grammar(later));
  EXPECT_FALSE(matches(later.c_str(), "ax"));
  EXPECT_FALSE(matches(later.c_str(), "ab"));
  EXPECT_TRUE(matches(("root ::= \"a\" d0\n" + doubled("d0", 10)).c_str(), "axx"));
  // Ways count, however few places they lead to: each place here takes a hundred thousand.
  EXPECT_THROW(check_grammar("root ::= d d\nd ::= e e\ne ::= " + std::string(100000, '|')), Error);
  // As many words as the text has room for do not.
  EXPECT_NO_THROW(check_grammar("root::=" + repeated("\"a\"|", 65000) + "\"b\""));
}

std::string why_schema_refused(const nlohmann::ordered_json& schema) {
  try {
    gbnf_of_json_schema(schema);
  } catch (const Error& error) {
    return error.what();
  }
  return "taken";
}

/// What takes a few megabytes to say and would take gigabytes, or a stack without end, to follow.
TEST(JsonSchema, WhatWouldGrowWithoutBoundIsRefused) {
  using Json = nlohmann::ordered_json;
  Json deep = Json::object(), chain = {{"$ref", "#/$defs/0"}};
  for (int i = 0; i < 600; ++i) deep = {{"type", "array"}, {"items", deep}};
  for (int i = 0; i < 3000; ++i)
    chain["$defs"][std::to_string(i)] = {{"items", {{"$ref", "#/$defs/" + std::to_string(i + 1)}}}};
  EXPECT_THAT(why_schema_refused(deep), testing::HasSubstr("nested or refer"));
  EXPECT_THAT(why_schema_refused(chain), testing::HasSubstr("nested or refer"));
  Json alike = Json::object();
  for (int i = 0; i < 400; ++i) alike = {{"type", "array"}, {"items", alike}};
  EXPECT_EQ(why_schema_refused(alike), "taken");
  const std::string branches(100000, '|');
  EXPECT_THAT(why_schema_refused({{"type", "string"}, {"pattern", branches}}),
              testing::HasSubstr("grammar of more than"));
  EXPECT_THAT(why_schema_refused({{"description", std::string(2 << 20, 'x')}}), testing::HasSubstr("larger than"));
  Json many = {{"type", "object"}};
  for (int i = 0; i < 1000; ++i) many["properties"][std::to_string(i)] = {{"type", "string"}, {"pattern", "|||"}};
  EXPECT_THAT(why_schema_refused(many), testing::HasSubstr("grammar of more than"));
  EXPECT_THROW(gbnf_of_regex(std::string(100000, '.'), Quoting::none, true), Error);
  const std::string name(100000, 'n');
  EXPECT_NE(why_schema_refused({{"properties", {{name, Json::object()}}}, {"additionalProperties", true}}), "taken");
  EXPECT_NE(why_schema_refused({{"type", "string"}, {"minLength", 1}, {"pattern", "^[" + name + name + "]$"}}),
            "taken");
  Json merged = {{"$defs", {{"a", {{"required", Json::array()}}}}}, {"allOf", Json::array()}};
  for (int i = 0; i < 5000; ++i) merged["$defs"]["a"]["required"].push_back("n");
  for (int i = 0; i < 400; ++i) merged["allOf"].push_back({{"$ref", "#/$defs/a"}});
  EXPECT_NE(why_schema_refused(merged), "taken");
}

/// From a state within a JSON string, for all states on the way: how many characters may come at the least and at the
/// most before it closes. No repetition may be without end.
using Lengths = std::map<Automaton::State, std::pair<int, int>>;
std::pair<int, int> lengths(Automaton& automaton, Automaton::State state, Lengths& known) {
  if (const auto at = known.find(state); at != known.end()) return at->second;
  constexpr int none = 1 << 30;
  std::pair found{none, -none};
  if (automaton.after(state, '"') != Automaton::dead) found = {0, 0};
  std::set<Automaton::State> next;
  for (std::uint8_t byte = 0; byte < 128; ++byte) {
    const Automaton::State one = automaton.after(state, byte);
    if (byte != '"' && byte != '\\') next.insert(one);
    for (std::uint8_t escaped = 0; byte == '\\' && escaped < 128; ++escaped) next.insert(automaton.after(one, escaped));
  }
  next.erase(Automaton::dead);
  for (const Automaton::State one : next) {
    const auto [least, most] = lengths(automaton, one, known);
    found = {std::min(found.first, least + 1), std::max(found.second, most + 1)};
  }
  return known[state] = found;
}

TEST(JsonSchema, AFormatStaysBesideTheLengthsThatItsTextsHave) {
  for (const char* name :
       {"date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}) {
    const auto gbnf = [](nlohmann::ordered_json more, const char* format) {
      more["type"] = "string";
      if (format) more["format"] = format;
      return gbnf_of_json_schema(more);
    };
    const std::string free = gbnf({}, name);
    Automaton automaton(network(free));
    Lengths known;
    const auto [least, most] = lengths(automaton, automaton.after(automaton.start(), '"'), known);
    EXPECT_EQ(gbnf({{"minLength", least}, {"maxLength", most}}, name), free) << name;
    for (const nlohmann::ordered_json& tighter :
         {nlohmann::ordered_json{{"minLength", least + 1}}, nlohmann::ordered_json{{"maxLength", most - 1}}})
      EXPECT_EQ(gbnf(tighter, name), gbnf(tighter, nullptr)) << name;
  }
}

/// However many fields have one: patterns are there once.
TEST(JsonSchema, AFormatIsOneRule) {
  nlohmann::ordered_json schema = {{"type", "object"}};
  for (int i = 0; i < 200; ++i)
    schema["properties"][fmt::format("p{}", i)] = {{"type", "string"}, {"format", i % 2 ? "ipv6" : "date-time"}};
  EXPECT_LT(gbnf_of_json_schema(schema).size(), 64u << 10);
}

TEST(Gbnf, RandomTextDoesNoHarm) {
  Random random(2);
  const std::string alphabet = "root ::=\"ab\\x[]()*+?{1,}|#.\n^-";
  for (int i = 0; i < 20000; ++i) {
    std::string text = "root ::= ";
    for (auto n = random() % 30; n > 0; --n) text += alphabet[random() % alphabet.size()];
    why_refused(text);
  }
}

TEST(Automaton, MatchesWhatRegularExpressionsMatch) {
  Random random(3);
  for (int i = 0; i < 200; ++i) {
    // The same random expression in both notations.
    std::string gbnf, regex;
    // Repetitions are not nested: std::regex would try all ways to share the text out between them.
    const auto add = [&](const auto& self, int depth, bool repeated) -> void {
      const auto group = [&](const std::string& times, bool with_choice) {
        gbnf += " (";
        regex += "(?:";
        self(self, depth + 1, repeated || !times.empty());
        if (with_choice) {
          gbnf += " |";
          regex += "|";
          self(self, depth + 1, repeated);
        }
        gbnf += ")" + times;
        regex += ")" + times;
      };
      switch (random() % (depth > 3 ? 2 : repeated ? 3 : 5)) {
        case 0:
          gbnf += " \"a\"";
          regex += "a";
          break;
        case 1:
          gbnf += " [ab]";
          regex += "[ab]";
          break;
        case 2:
          group("", true);
          break;
        case 3:
          group(std::array{"*", "+", "?", "{1,3}", "{2}"}[random() % 5], false);
          break;
        default:
          self(self, depth + 1, repeated);
          self(self, depth + 1, repeated);
      }
    };
    add(add, 0, false);
    Automaton automaton(network("root ::=" + gbnf));
    const std::regex reference(regex);
    for (int length = 0, j = 0; j < 60; ++j, length = static_cast<int>(random() % 8)) {
      std::string text;
      for (int k = 0; k < length; ++k) text += random() % 3 ? 'a' : 'b';
      EXPECT_EQ(matches(automaton, text), std::regex_match(text, reference)) << regex << " on " << text;
    }
  }
}

nlohmann::json any_json(Random& random, int depth) {
  switch (random() % (depth > 4 ? 5 : 7)) {
    case 0:
      return nullptr;
    case 1:
      return random() % 2 == 0;
    case 2:
      return static_cast<int>(random());
    case 3:
      return static_cast<double>(random()) / 1e7;
    case 4:
      return std::array{"", "a\n", "\xC3\xA9\"", "\\", "\xF0\x9F\x98\x80"}[random() % 5];
    case 5: {
      auto list = nlohmann::json::array();
      for (auto n = random() % 4; n > 0; --n) list.push_back(any_json(random, depth + 1));
      return list;
    }
    default: {
      auto object = nlohmann::json::object();
      for (auto n = random() % 4; n > 0; --n) object[std::to_string(random() % 9)] = any_json(random, depth + 1);
      return object;
    }
  }
}

/// None where the parser gives up early because a number is too large for a double.
std::optional<bool> is_json(const std::string& text) {
  try {
    return !nlohmann::json::parse(text).is_discarded();
  } catch (const nlohmann::json::out_of_range&) {
    return std::nullopt;
  } catch (const nlohmann::json::parse_error&) {
    return false;
  }
}

TEST(Automaton, TakesJsonAsAParserDoes) {
  Random random(4);
  Automaton automaton(network(json_gbnf));
  int valid = 0, invalid = 0;
  for (int i = 0; i < 4000; ++i) {
    std::string text = any_json(random, 0).dump(random() % 2 ? -1 : 1);
    for (auto edits = random() % 3; edits > 0 && !text.empty(); --edits) {
      const char other = "{}[]\",:0e-+.tn\\"[random() % 15];
      if (random() % 2) {
        text[random() % text.size()] = other;
      } else {
        text.erase(random() % text.size(), 1);
      }
    }
    const auto expected = is_json(text);
    if (!expected) continue;
    ++(*expected ? valid : invalid);
    EXPECT_EQ(matches(automaton, text), *expected) << text;
  }
  EXPECT_GT(valid, 1000);
  EXPECT_GT(invalid, 1000);
}

TEST(TokenGrammar, AllowsExactlyTheTokensThatFit) {
  Random random(5);
  std::vector<std::string> texts = {"",   "{",  "}",    "\"",   "\":",      "{\"",     "true",
                                    "tr", "ue", "\xC3", "\xA9", "\xC3\xA9", "\xF0\x9F"};
  for (int i = 0; i < 400; ++i) {
    std::string text;
    for (auto n = 1 + random() % 5; n > 0; --n) text += "{}[]\",: 01e-truefalsn\\\xC3\xA9"[random() % 23];
    texts.push_back(text);
  }
  const auto tokens = std::make_shared<const TokenTable>(texts);
  const auto grammar = std::make_shared<TokenGrammar>(json_gbnf, tokens);
  for (int run = 0; run < 20; ++run) {
    Matcher matcher(grammar);
    std::string said;
    for (int step = 0; step < 30; ++step) {
      const TokenMask& mask = matcher.allowed();
      std::vector<std::size_t> possible;
      for (std::size_t id = 0; id < texts.size(); ++id) {
        Matcher alone(grammar);
        const bool fits = !texts[id].empty() && alone.push(said + texts[id]);
        EXPECT_EQ(holds(mask, id), fits) << said << " and then " << texts[id];
        if (fits) possible.push_back(id);
      }
      if (possible.empty()) break;
      const std::string& next = texts[possible[random() % possible.size()]];
      said += next;
      ASSERT_TRUE(matcher.push(next));
    }
  }
}

/// Answers of one grammar that get a moment each in turn: in the end each has the mask that it would have got at once.
TEST(TokenGrammar, MasksPreparedBitByBitAreTheSame) {
  std::vector<std::string> words;
  Random random(7);
  for (int i = 0; i < 3000; ++i) {
    words.emplace_back();
    for (unsigned length = 1 + random() % 6; length > 0; --length)
      words.back() += static_cast<char>('a' + random() % 4);
  }
  const auto tokens = std::make_shared<const TokenTable>(words);
  const char* gbnf = "root ::= (.* \"a\" .{50}){40}";
  const auto grammar = std::make_shared<TokenGrammar>(gbnf, tokens);
  std::vector<Matcher> matchers(3, Matcher(grammar));
  std::vector<std::vector<std::string>> said(matchers.size());
  int unfinished = 0;
  for (int turn = 0; turn < 100000; ++turn) {
    for (std::size_t i = 0; i < matchers.size(); ++i) {
      if (said[i].size() > 11) continue;
      if (!matchers[i].prepare(std::chrono::steady_clock::now())) {  // the least that is done
        ++unfinished;
        continue;
      }
      Matcher alone(std::make_shared<TokenGrammar>(gbnf, tokens));
      for (const std::string& word : said[i]) ASSERT_TRUE(alone.push(word));
      const TokenMask mask = matchers[i].allowed();
      ASSERT_EQ(mask, alone.allowed());
      std::size_t id = random() % words.size();
      while (!holds(mask, id)) id = (id + 1) % words.size();
      said[i].push_back(words[id]);
      ASSERT_TRUE(matchers[i].push(words[id]));
    }
  }
  for (const auto& words_said : said) EXPECT_EQ(words_said.size(), 12u);
  EXPECT_GT(unfinished, 0);
}

TEST(TokenGrammar, AGrammarMadeToExplodeIsGivenUpInTime) {
  // Which of the `a`s is the one n from the end: 2^n states for an automaton, each of up to n places.
  const auto tokens = std::make_shared<const TokenTable>(std::vector<std::string>{"a", "b", "ab", "ba", "aabb"});
  for (const auto& [gbnf, steps] :
       {std::pair{"root ::= [ab]* \"a\" [ab]{20}", 30000}, std::pair{"root ::= [ab]* \"a\" [ab]{3000}", 6000}}) {
    const auto grammar = std::make_shared<TokenGrammar>(gbnf, tokens);
    Matcher matcher(grammar);
    Random random(6);
    for (int i = 0; i < steps; ++i) {
      ASSERT_TRUE(matcher.push(random() % 2 ? "a" : "b"));
      ASSERT_LT(grammar->automaton()->bytes(), std::size_t{40} << 20);
    }
    EXPECT_TRUE(holds(matcher.allowed(), 4));
  }
}

TEST(GrammarCache, MemoryOfAllGrammarsTogetherIsBounded) {
  constexpr std::size_t most = 4 << 20;
  GrammarCache grammars(std::make_shared<const TokenTable>(std::vector<std::string>{"a", "b", "ab", "ba", "aabb"}),
                        most);
  const auto exploding = [](int i) { return fmt::format("root ::= [ab]* \"a\" [ab]{{{}}}", 1000 + i); };
  std::vector<Matcher> matchers;
  for (int i = 0; i < 4; ++i) matchers.emplace_back(grammars.get(exploding(i)));
  const auto small = grammars.get(json_gbnf);
  const auto known = small->automaton();
  Random random(9);
  std::size_t largest = 0;
  for (int step = 0; step < 600; ++step) {
    for (Matcher& matcher : matchers) {
      ASSERT_TRUE(matcher.prepare(TokenGrammar::Clock::time_point::max()));
      ASSERT_TRUE(matcher.push(random() % 2 ? "a" : "b"));
    }
    largest = std::max(largest, grammars.bytes());
    grammars.trim();
  }
  EXPECT_GT(largest, most);
  EXPECT_LT(largest, most + (1 << 20));
  EXPECT_EQ(small->automaton(), known);  // and nothing of it had to be found anew
  matchers.clear();
  for (int i = 0; i < 100; ++i) grammars.get(exploding(i));
  grammars.trim();
  EXPECT_LT(grammars.bytes(), most);
}

}  // namespace
}  // namespace shoal::grammar
