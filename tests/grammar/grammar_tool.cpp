// For tests in Python. Reads one JSON object a line and answers each with one line:
//   {"schema": S, "texts": [T…], "samples": N, "seed": K}
//     → {"accepts": [bool…], "samples": [T…]}, or {"refused": "why"}
// `accepts` says of each text whether the grammar made of the schema matches it; `samples` are random texts that it
// matches. With "gbnf" instead of "schema" the grammar is given.
#include <iostream>
#include <nlohmann/json.hpp>
#include <random>

#include "base/error.h"
#include "runtime/grammar/automaton.h"
#include "runtime/grammar/gbnf.h"
#include "runtime/grammar/json_schema.h"

namespace shoal::grammar {
namespace {

using Json = nlohmann::ordered_json;

bool accepts(Automaton& automaton, const std::string& text) {
  Automaton::State state = automaton.start();
  for (const char c : text) state = automaton.after(state, static_cast<std::uint8_t>(c));
  return state != Automaton::dead && automaton.accepts(state);
}

/// A random walk; empty when it does not come to an end in time.
std::string sample(Automaton& automaton, std::mt19937& random) {
  std::string text;
  Automaton::State state = automaton.start();
  while (text.size() < 3000) {
    std::vector<std::uint8_t> possible;
    for (int byte = 0; byte < 256; ++byte) {
      if (automaton.after(state, static_cast<std::uint8_t>(byte)) != Automaton::dead) {
        possible.push_back(static_cast<std::uint8_t>(byte));
      }
    }
    if (automaton.accepts(state) && (possible.empty() || random() % 3 == 0)) return text;
    if (possible.empty()) return {};
    const std::uint8_t next = possible[random() % possible.size()];
    text += static_cast<char>(next);
    state = automaton.after(state, next);
  }
  return {};
}

Json answer(const Json& asked) {
  try {
    const std::string gbnf =
        asked.contains("gbnf") ? asked["gbnf"].get<std::string>() : gbnf_of_json_schema(asked.at("schema"));
    Automaton automaton(std::make_shared<const Network>(parse_gbnf(gbnf)));
    Json found = {{"accepts", Json::array()}, {"samples", Json::array()}};
    for (const Json& text : asked.value("texts", Json::array())) {
      found["accepts"].push_back(accepts(automaton, text.get<std::string>()));
    }
    std::mt19937 random(asked.value("seed", 1u));
    for (int i = asked.value("samples", 0); i > 0; --i) {
      if (std::string text = sample(automaton, random); !text.empty()) found["samples"].push_back(std::move(text));
    }
    return found;
  } catch (const Error& error) {
    return {{"refused", error.what()}};
  }
}

}  // namespace
}  // namespace shoal::grammar

int main() {
  using shoal::grammar::Json;
  for (std::string line; std::getline(std::cin, line);) {
    std::cout << shoal::grammar::answer(Json::parse(line)).dump(-1, ' ', false, Json::error_handler_t::replace) << '\n';
  }
}
