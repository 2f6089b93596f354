#include "runtime/model_source.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "runtime/gguf.h"
#include "runtime/gguf_config.h"
#include "runtime/gguf_names.h"
#include "runtime/gguf_tokenizer.h"

namespace shoal {

ModelConfig read_model_config(const std::filesystem::path& model) {
  return is_gguf(model) ? gguf_model_config(Gguf::open(model)) : ModelConfig::from_file(model);
}

Precision stored_precision(const std::filesystem::path& model, const ModelConfig& config) {
  if (!is_gguf(model)) return Precision::of_config(config);
  const Gguf gguf = Gguf::open(model);
  std::map<std::string, const WeightType*, std::less<>> types;
  std::map<std::string, std::uint64_t> bytes;
  for (const TensorInfo& tensor : under_hugging_face_names(gguf)) {
    const WeightType* type = find_weight_type(tensor.type);
    if (!type) fail("{}: tensor {} has the type {}, whose size is not known", gguf.place(), tensor.name, tensor.type);
    types[tensor.name] = type;
    bytes[tensor.type] += tensor.bytes;
  }
  if (types.empty()) fail("{}: there is no tensor in it", gguf.place());
  const auto most = std::ranges::max_element(bytes, {}, [](const auto& entry) { return entry.second; });
  return Precision::of_tensors(most->first, std::move(types));
}

std::shared_ptr<const Tokenizer> read_tokenizer(const std::filesystem::path& model) {
  if (is_gguf(model)) {
    const Gguf gguf = Gguf::open(model);
    if (!gguf.metadata.contains("tokenizer.ggml.tokens")) return nullptr;
    const std::string place = gguf.place();
    return std::make_shared<const Tokenizer>(Tokenizer::from_json(gguf_tokenizer_json(gguf.metadata, place), place));
  }
  if (!std::filesystem::exists(model / "tokenizer.json")) return nullptr;
  return std::make_shared<const Tokenizer>(Tokenizer::from_model_dir(model));
}

void check_ids(const Tokenizer& tokenizer, int vocab_size, const std::filesystem::path& model) {
  const std::int32_t largest = tokenizer.vocab_size() - 1;
  if (largest < vocab_size) return;
  const bool gguf = is_gguf(model);
  fail("{}: token \"{}\" has the id {}, and {} is {}", (gguf ? model : model / "tokenizer.json").string(),
       tokenizer.id_to_token(largest), largest,
       gguf ? "the number of rows of token_embd.weight" : "vocab_size of config.json", vocab_size);
}

std::optional<ChatTemplate> read_chat_template(const std::filesystem::path& model) {
  if (!is_gguf(model)) return ChatTemplate::from_model_dir(model);
  const Gguf gguf = Gguf::open(model);
  return gguf_chat_template(gguf.metadata, gguf.place());
}

std::string model_name(const std::filesystem::path& model) {
  const auto path = std::filesystem::weakly_canonical(model);
  return is_gguf(model) ? gguf_name(path) : path.filename().string();
}

}  // namespace shoal
