#include "planner/cards.h"

#include <algorithm>
#include <filesystem>

#include "base/error.h"

namespace shoal {
namespace {

const Card* find_card(const std::vector<Card>& cards, std::string_view name) {
  const auto card = std::find_if(cards.begin(), cards.end(), [&](const Card& c) { return c.name == name; });
  return card == cards.end() ? nullptr : &*card;
}

/// A card's JSON; `{"same_as": "deepseek-r1"}` stands for another card's.
nlohmann::json read_card(const std::vector<Card>& cards, const Card& card) {
  auto document = nlohmann::json::parse(card.text);
  if (!document.contains("same_as")) return document;
  return read_card(cards, *find_card(cards, document["same_as"].get<std::string>()));
}

[[noreturn]] void refuse(const char* what, const std::string& name, const std::vector<Card>& cards) {
  std::vector<std::string_view> names;
  for (const Card& card : cards) names.push_back(card.name);
  throw Error(fmt::format("{} is neither a file nor a bundled {} ({})", name, what, fmt::join(names, ", ")),
              ExitCode::usage);
}

}  // namespace

ModelConfig find_model(const std::string& name) {
  if (const Card* card = find_card(model_cards(), name))
    return ModelConfig::from_json(read_card(model_cards(), *card), "model card " + name);
  if (!std::filesystem::exists(name)) refuse("model card", name, model_cards());
  return ModelConfig::from_file(name);
}

Cluster find_cluster(const std::string& name) {
  if (const Card* card = find_card(cluster_cards(), name))
    return Cluster::from_json(read_card(cluster_cards(), *card), name);
  if (!std::filesystem::exists(name)) refuse("cluster card", name, cluster_cards());
  return Cluster::from_json(read_json_file(name), name);
}

}  // namespace shoal
