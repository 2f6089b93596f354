#include "runtime/importance.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>

#include "base/error.h"
#include "runtime/gguf.h"
#include "runtime/gguf_writer.h"

namespace shoal {
namespace {

constexpr std::string_view kSums = ".in_sum2", kCounts = ".counts";

}  // namespace

Importance Importance::read(const std::filesystem::path& path) {
  const Gguf gguf = Gguf::open(path);
  if (gguf.metadata.value("general.type", "") != "imatrix")
    fail("{}: is a GGUF file, but no importance matrix (general.type is not \"imatrix\")", path.string());
  std::ifstream file(path, std::ios::binary);
  const auto floats = [&](const TensorInfo& tensor) {
    if (tensor.type != "F32")
      fail("{}: tensor {} has the type {}, and must be F32", path.string(), tensor.name, tensor.type);
    std::vector<float> values(tensor.bytes / 4);
    file.seekg(static_cast<std::streamoff>(tensor.offset));
    if (!file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(tensor.bytes)))
      fail("{}: tensor {} cannot be read", path.string(), tensor.name);
    for (const float f : values)
      if (!(f >= 0 && std::isfinite(f)))
        fail("{}: tensor {} holds what is no sum of squares", path.string(), tensor.name);
    return values;
  };
  Importance result;
  result.place_ = path.string();
  for (const TensorInfo& tensor : gguf.tensors) {
    if (!tensor.name.ends_with(kSums)) continue;
    const std::string name = tensor.name.substr(0, tensor.name.size() - kSums.size());
    const TensorInfo* counts = gguf.find(name + std::string(kCounts));
    if (!counts) fail("{}: there is {} without {}{}", path.string(), tensor.name, name, kCounts);
    Entry entry{tensor.shape.back(), floats(tensor), floats(*counts)};
    if (entry.counts.empty() || entry.columns < 1) fail("{}: tensor {} is empty", path.string(), tensor.name);
    result.add(name, std::move(entry));
  }
  return result;
}

void Importance::write(const std::filesystem::path& path, const std::string& text, std::uint32_t windows,
                       std::uint32_t window) const {
  GgufHeaderWriter header;
  header.add("general.type", "imatrix");
  header.add("imatrix.datasets", std::vector<std::string>{text});
  header.add("imatrix.chunk_count", windows);
  header.add("imatrix.chunk_size", window);
  const QuantFormat& f32 = *find_format("F32");
  for (const auto& [name, e] : entries_) {
    const auto matrices = static_cast<std::int64_t>(e.sums.size()) / e.columns;
    header.add_tensor(name + std::string(kSums), {matrices, e.columns}, f32);
    header.add_tensor(name + std::string(kCounts), {static_cast<std::int64_t>(e.counts.size()), 1}, f32);
  }
  const auto layout = header.layout();
  std::ofstream out(path, std::ios::binary);
  out << layout.header;
  std::size_t number = 0;
  const auto put = [&](const std::vector<float>& values) {
    out.seekp(static_cast<std::streamoff>(layout.offsets[number++]));
    out.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(values.size() * 4));
  };
  for (const auto& [name, e] : entries_) {
    put(e.sums);
    put(e.counts);
  }
  // The last tensor is padded, too.
  const auto end = static_cast<std::uint64_t>(out.tellp());
  out << std::string(static_cast<std::size_t>(layout.file_bytes - end), '\0');
  if (!out.flush()) fail("{}: cannot be written", path.string());
}

std::vector<float> Importance::of(std::string_view gguf_name, std::int64_t number, std::int64_t columns) const {
  const auto it = entries_.find(gguf_name);
  if (it == entries_.end()) return {};
  const Entry& e = it->second;
  const auto all = static_cast<std::int64_t>(e.sums.size());
  // llama.cpp writes the matrices of a stack without counts of their own as one row.
  if (all % columns != 0 || (e.columns != columns && e.counts.size() != 1) || number >= all / columns)
    fail("{}: {} has {} values for {} columns, and does not belong to this model", place_, gguf_name, all, columns);
  const auto matrices = static_cast<std::size_t>(all / columns);
  if (e.counts.size() != 1 && e.counts.size() != matrices)
    fail("{}: {} has {} counts for {} matrices", place_, gguf_name, e.counts.size(), matrices);
  const float count = e.counts[e.counts.size() == 1 ? 0 : static_cast<std::size_t>(number)];
  std::vector<float> means(static_cast<std::size_t>(columns), 1.0f);
  if (count > 0)
    for (std::size_t c = 0; c < means.size(); ++c)
      means[c] = e.sums[static_cast<std::size_t>(number * columns) + c] / count;
  // Where all inputs were zero there is nothing to prefer.
  if (std::all_of(means.begin(), means.end(), [](float f) { return f == 0; }))
    std::fill(means.begin(), means.end(), 1.0f);
  return means;
}

}  // namespace shoal
