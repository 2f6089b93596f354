#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "planner/cluster.h"
#include "planner/model_config.h"

namespace shoal {

/// A file of planner/cards/, built into the program.
struct Card {
  std::string_view name;  // without its ending
  std::string_view text;  // JSON
};
const std::vector<Card>& model_cards();
const std::vector<Card>& cluster_cards();

/// The model that `name` says: a bundled card ("deepseek-r1"), a folder with a `config.json`, or such a file. Error
/// (wrong usage) lists the cards where there is no such card and no such file.
ModelConfig find_model(const std::string& name);
/// The same for clusters: a card ("h800x8") or a JSON file in the form of planner/README.md.
Cluster find_cluster(const std::string& name);

}  // namespace shoal
