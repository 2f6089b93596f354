#include "runtime/text/post_processor.h"

#include <algorithm>

#include "runtime/text/vocabulary.h"

namespace shoal::text {
namespace {

int32_t read_id(const JsonField& json) { return static_cast<int32_t>(json.as_int(0, kMaxTokenId)); }

void read_template(const JsonField& json, PostProcessor& out) {
  std::vector<int32_t> before, after;
  bool text_seen = false;
  for (const JsonField& part : json.at("single").elements()) {
    if (const auto special = part.find("SpecialToken")) {
      const std::string& name = special->at("id").as_string();
      const JsonField token = json.at("special_tokens").at(name.c_str());
      for (const JsonField& id : token.at("ids").elements()) (text_seen ? after : before).push_back(read_id(id));
    } else if (const auto sequence = part.find("Sequence")) {
      if (text_seen || sequence->at("id").as_string() != "A") part.reject("expected the sequence A, once");
      text_seen = true;
    } else {
      part.reject("expected a SpecialToken or a Sequence");
    }
  }
  if (!text_seen) json.at("single").reject("has no Sequence");
  out.before.insert(out.before.begin(), before.begin(), before.end());
  out.after.insert(out.after.end(), after.begin(), after.end());
}

/// The id in a ["token", id] pair.
int32_t read_pair(const JsonField& json) {
  const auto elements = json.elements();
  if (elements.size() != 2) json.reject("expected [token, id]");
  return read_id(elements[1]);
}

void add(const JsonField& json, PostProcessor& out, int depth) {
  if (depth > kMostNested) json.reject("nested too deeply");
  const std::string& type = json.at("type").as_string();
  if (type == "Sequence") {
    for (const JsonField& step : json.at("processors").elements()) add(step, out, depth + 1);
  } else if (type == "TemplateProcessing") {
    read_template(json, out);
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    out.before.insert(out.before.begin(), read_pair(json.at("cls")));
    out.after.push_back(read_pair(json.at("sep")));
  } else if (type != "ByteLevel") {
    json.reject("post-processor " + type + " is not supported");
  }
}

}  // namespace

PostProcessor PostProcessor::from_json(const JsonField& json) {
  PostProcessor out;
  add(json, out, 0);
  return out;
}

}  // namespace shoal::text
