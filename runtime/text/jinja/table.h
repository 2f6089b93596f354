#pragma once
#include <map>
#include <string_view>

namespace shoal::jinja {

/// Functions by name.
template <class Function>
using Table = std::map<std::string_view, Function>;

/// Null where `table` has no such name.
template <class Function>
Function find_in(const Table<Function>& table, std::string_view name) {
  const auto it = table.find(name);
  return it == table.end() ? nullptr : it->second;
}

}  // namespace shoal::jinja
