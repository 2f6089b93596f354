#include "runtime/checkpoint.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <set>
#include <system_error>
#include <thread>

#include "base/error.h"
#include "planner/json_fields.h"
#include "runtime/gguf.h"
#include "runtime/gguf_names.h"
#include "runtime/input_file.h"
#include "runtime/safetensors.h"

namespace shoal {
namespace {

namespace fs = std::filesystem;

/// An index with an entry for each of R1's 92,000 tensors has 9 MB.
constexpr std::uint64_t max_index_bytes = 256u << 20;

std::vector<TensorInfo> read_header(const InputFile& file) {
  const std::string name = file.path().string();
  std::string text(static_cast<std::size_t>(std::min<std::uint64_t>(8, file.bytes())), '\0');
  file.read(0, std::as_writable_bytes(std::span(text)));
  text.resize(static_cast<std::size_t>(safetensors_header_bytes(text, file.bytes(), name)));
  file.read(8, std::as_writable_bytes(std::span(text)));
  return parse_safetensors_header(text, file.bytes(), name);
}

/// Calls `job(0)` ... `job(count - 1)` from a few threads. Where some throw, the exception of the lowest index is
/// thrown, so that what a broken model is blamed for does not depend on timing.
template <class Job>
void parallel_for(std::size_t count, Job job) {
  std::vector<std::exception_ptr> problems(count);
  std::atomic<std::size_t> next = 0;
  const auto work = [&] {
    for (std::size_t i = next++; i < count; i = next++) {
      try {
        job(i);
      } catch (...) {
        problems[i] = std::current_exception();
      }
    }
  };
  // More threads than cores: they wait for the disk, or for the network behind it.
  std::vector<std::jthread> threads;
  for (std::size_t t = 1; t < std::min<std::size_t>(count, 16); ++t) threads.emplace_back(work);
  work();
  threads.clear();  // waits for them
  for (const auto& problem : problems) {
    if (problem) std::rethrow_exception(problem);
  }
}

/// The name of a shard beside its index. A name that leads elsewhere could make Shoal read any file of the machine.
bool is_plain_file_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         !has_control_character(name);
}

using WeightMap = std::map<std::string, std::string>;  // tensor -> shard

WeightMap read_index(const fs::path& path) {
  const auto document = read_json_file(path, max_index_bytes);
  const auto map = JsonFields(document, path.string()).object("weight_map");
  if (!map) fail("{}: weight_map is missing", path.string());
  WeightMap shards;
  for (const auto& [tensor, shard] : document["weight_map"].items()) {
    if (has_control_character(tensor)) fail("{}: the name of a tensor has a control character", path.string());
    if (!shard.is_string()) map->reject(tensor, "must be a file name");
    const auto& name = shard.get_ref<const std::string&>();
    if (!is_plain_file_name(name))
      map->reject(tensor, fmt::format("is in {}, which is not a plain file name", shard.dump()));
    shards.emplace(tensor, name);
  }
  if (shards.empty()) fail("{}: weight_map is empty", path.string());
  return shards;
}

/// The weights of a folder: the files, and what the index says of them where there is one.
struct ModelFiles {
  std::vector<fs::path> files;
  std::optional<fs::path> index;
  WeightMap shards;
};

ModelFiles layout_of(const fs::path& model) {
  std::error_code ignored;
  if (fs::is_regular_file(model, ignored) && model.extension() == ".safetensors") return {{model}, {}, {}};
  if (!fs::is_directory(model, ignored))
    fail("{}: is neither a folder nor a .safetensors or .gguf file", model.string());
  if (const auto one = model / "model.safetensors"; fs::exists(one, ignored)) return {{one}, {}, {}};

  if (const auto index = model / "model.safetensors.index.json"; fs::exists(index, ignored)) {
    ModelFiles layout{{}, index, read_index(index)};
    std::set<std::string> names;
    for (const auto& [tensor, shard] : layout.shards) names.insert(shard);
    std::vector<std::string> missing;
    for (const auto& name : names) {
      layout.files.push_back(model / name);
      if (!fs::exists(layout.files.back(), ignored)) missing.push_back(name);
    }
    if (!missing.empty()) {
      fail("{}: {} of {} files are missing: {}", model.string(), missing.size(), names.size(),
           fmt::join(missing, ", "));
    }
    return layout;
  }

  ModelFiles layout;
  for (fs::directory_iterator it(model, ignored), end; it != end; it.increment(ignored)) {
    if (it->path().extension() == ".safetensors") layout.files.push_back(it->path());
  }
  if (layout.files.empty()) fail("{}: holds no .safetensors files", model.string());
  if (layout.files.size() > 1) {
    fail("{}: holds {} .safetensors files and no model.safetensors.index.json that says what is in them",
         model.string(), layout.files.size());
  }
  return layout;
}

void check_against_index(const ModelFiles& layout, const std::vector<std::vector<TensorInfo>>& by_file) {
  std::size_t found = 0;
  for (std::size_t i = 0; i < by_file.size(); ++i) {
    const std::string shard = layout.files[i].filename().string();
    for (const TensorInfo& tensor : by_file[i]) {
      const auto it = layout.shards.find(tensor.name);
      if (it == layout.shards.end())
        fail("{}: holds tensor {}, which the index lacks", layout.files[i].string(), tensor.name);
      if (it->second != shard) {
        fail("{}: holds tensor {}, which the index places in {}", layout.files[i].string(), tensor.name, it->second);
      }
      ++found;
    }
  }
  if (found == layout.shards.size()) return;
  std::set<std::string_view> present;
  for (const auto& tensors : by_file) {
    for (const TensorInfo& tensor : tensors) present.insert(tensor.name);
  }
  for (const auto& [tensor, shard] : layout.shards) {
    if (!present.contains(tensor)) fail("{}: {} lacks tensor {}", layout.index->string(), shard, tensor);
  }
}

}  // namespace

struct Checkpoint::Files {
  fs::path model;
  std::vector<std::optional<InputFile>> files;
  Source source;  // of tensors in no file
};

void TensorInfo::set_format(const QuantFormat* f) {
  format = f;
  for (const DType t : {DType::f32, DType::f16, DType::bf16}) {
    if (f->name == name_of(t)) dtype = t;
  }
}

Checkpoint Checkpoint::open(const fs::path& model) {
  if (is_gguf(model)) return open_gguf(model);
  ModelFiles layout = layout_of(model);
  Checkpoint checkpoint;
  checkpoint.handles_ = std::make_shared<Files>(Files{model, {}, {}});
  checkpoint.handles_->files.resize(layout.files.size());
  std::vector<std::vector<TensorInfo>> by_file(layout.files.size());
  parallel_for(layout.files.size(), [&](std::size_t i) {
    by_file[i] = read_header(checkpoint.handles_->files[i].emplace(layout.files[i]));
  });
  if (layout.index) check_against_index(layout, by_file);

  for (std::size_t i = 0; i < by_file.size(); ++i) {
    for (TensorInfo& tensor : by_file[i]) {
      tensor.file = static_cast<int>(i);
      std::string name = tensor.name;
      checkpoint.tensors_.emplace(std::move(name), std::move(tensor));
    }
  }
  checkpoint.files_ = std::move(layout.files);
  return checkpoint;
}

Checkpoint Checkpoint::open_gguf(const fs::path& model) {
  Gguf gguf = Gguf::open(model);
  Checkpoint checkpoint;
  checkpoint.handles_ = std::make_shared<Files>(Files{model, {}, {}});
  for (const fs::path& file : gguf.files) checkpoint.handles_->files.emplace_back(file);
  for (TensorInfo& tensor : under_hugging_face_names(gguf)) {
    std::string name = tensor.name;
    if (!checkpoint.tensors_.emplace(name, std::move(tensor)).second) {
      fail("{}: holds tensor {} under two names", model.string(), name);
    }
  }
  checkpoint.files_ = std::move(gguf.files);
  return checkpoint;
}

Checkpoint::Checkpoint(const std::string& name, std::vector<TensorInfo> tensors, Source source)
    : handles_(std::make_shared<Files>(Files{name, {}, std::move(source)})), files_{name} {
  for (TensorInfo& tensor : tensors) {
    std::string key = tensor.name;
    tensors_.emplace(std::move(key), std::move(tensor));
  }
}

const TensorInfo* Checkpoint::find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

const TensorInfo& Checkpoint::require(std::string_view name, std::span<const std::int64_t> shape) const {
  const TensorInfo* tensor = find(name);
  if (!tensor) fail("{}: tensor {} is missing", handles_->model.string(), name);
  if (!std::equal(tensor->shape.begin(), tensor->shape.end(), shape.begin(), shape.end())) {
    fail("{}: tensor {} has the shape [{}], and must have [{}]", handles_->model.string(), name,
         fmt::join(tensor->shape, ", "), fmt::join(shape.begin(), shape.end(), ", "));
  }
  return *tensor;
}

void Checkpoint::read(const TensorInfo& tensor, std::uint64_t from, std::span<std::byte> out) const {
  if (from > tensor.bytes || out.size() > tensor.bytes - from) {
    fail("{}: tensor {}: bytes [{}, {}) were asked for, and it has {}",
         files_.at(static_cast<std::size_t>(tensor.file)).string(), tensor.name, from, from + out.size(), tensor.bytes);
  }
  if (handles_->source) return handles_->source(tensor, from, out);
  const InputFile& file = *handles_->files.at(static_cast<std::size_t>(tensor.file));
  file.read(tensor.offset + from, out, ": tensor " + tensor.name);
}

std::vector<float> Checkpoint::read_floats(const TensorInfo& tensor) const {
  const QuantFormat* format = tensor.format;
  if (!format && tensor.dtype) format = find_format(name_of(*tensor.dtype));
  if (!format) {
    fail("{}: tensor {} has the type {}, and must be F32, F16 or BF16",
         files_.at(static_cast<std::size_t>(tensor.file)).string(), tensor.name, tensor.type);
  }
  const auto block_bytes = static_cast<std::uint64_t>(format->block_bytes);
  const auto block_elements = static_cast<std::uint64_t>(format->block_elements);
  std::vector<float> values(tensor.bytes / block_bytes * block_elements);
  const std::uint64_t piece = (1u << 20) / block_bytes * block_bytes;
  std::vector<std::byte> staging(std::min(piece, tensor.bytes));
  for (std::uint64_t done = 0; done < tensor.bytes; done += staging.size()) {
    staging.resize(std::min(piece, tensor.bytes - done));
    read(tensor, done, staging);
    format->dequantize(staging.data(), static_cast<std::int64_t>(staging.size() / block_bytes * block_elements),
                       values.data() + done / block_bytes * block_elements);
  }
  return values;
}

}  // namespace shoal
