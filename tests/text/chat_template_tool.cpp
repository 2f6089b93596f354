// Renders chat templates for comparison with Jinja2. Reads a JSON object a line,
//   {"template": text, "variables": {...}}                    the template with just these variables, or
//   {"template": text, "messages": [...], "tools": [...], "add_generation_prompt": bool, "extra": {...},
//    "special_tokens": {...}}                                 as a conversation, or
//   {"folder": path, ...}                                     the same with a model folder's template;
// and writes one a line: {"text": what it prints} or {"error": the message}.
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "runtime/text/chat_template.h"
#include "runtime/text/jinja/from_json.h"
#include "runtime/text/jinja/template.h"

namespace {

using Json = nlohmann::ordered_json;

std::string render_plain(const Json& job) {
  const shoal::jinja::Template parsed(job.at("template").get_ref<const std::string&>(), "template");
  std::map<std::string, shoal::jinja::Value> variables;
  size_t bytes = 0;
  for (const auto& [name, value] : job.at("variables").items()) variables[name] = shoal::jinja::from_json(value, bytes);
  return parsed.render(variables, bytes);
}

shoal::ChatTemplate load(const Json& job) {
  if (!job.contains("folder")) {
    return {job.at("template").get<std::string>(), "template",
            job.value("special_tokens", shoal::ChatTemplate::SpecialTokens())};
  }
  auto found = shoal::ChatTemplate::from_model_dir(job.at("folder").get<std::string>());
  if (!found) throw std::runtime_error("the folder has no chat template");
  return *found;
}

/// Parsed once for all jobs that have the same template.
const shoal::ChatTemplate& chat_template(const Json& job) {
  static std::map<std::string, shoal::ChatTemplate> loaded;
  const std::string key =
      job.value("folder", "") + job.value("template", "") + job.value("special_tokens", Json()).dump();
  const auto it = loaded.find(key);
  return it != loaded.end() ? it->second : loaded.emplace(key, load(job)).first->second;
}

std::string render(const Json& job) {
  if (job.contains("variables")) return render_plain(job);
  const Json tools = job.value("tools", Json()), extra = job.value("extra", Json());
  return chat_template(job).render(job.at("messages"), &tools, job.value("add_generation_prompt", false), &extra);
}

}  // namespace

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    Json out;
    try {
      out["text"] = render(Json::parse(line));
    } catch (const std::exception& e) {
      out["error"] = e.what();
    }
    std::cout << out.dump() << "\n";
  }
  return 0;
}
