// Runs a number format's decoder or encoder on raw bytes, for comparison with other implementations.
//   format_tool list                                  one line a format: name, number, elements and bytes of a block,
//                                                     whether it is written
//   format_tool decode NAME < blocks > floats
//   format_tool encode NAME [IMPORTANCE_FILE] < floats > blocks
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <vector>

#include "kernels/formats/format.h"

namespace {

std::string all_of(std::istream& in) { return {std::istreambuf_iterator<char>(in), {}}; }

std::vector<float> floats_of(const std::string& bytes) {
  std::vector<float> values(bytes.size() / 4);
  std::memcpy(values.data(), bytes.data(), values.size() * 4);
  return values;
}

int list() {
  for (const auto& f : shoal::quant_formats())
    std::cout << f.name << " " << f.gguf_type << " " << f.block_elements << " " << f.block_bytes << " "
              << (f.quantize ? 1 : 0) << "\n";
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  if (command == "list") return list();
  const shoal::QuantFormat* format = argc > 2 ? shoal::find_format(argv[2]) : nullptr;
  if (!format) return 2;
  const std::string input = all_of(std::cin);
  if (command == "decode") {
    const auto blocks = static_cast<std::int64_t>(input.size()) / format->block_bytes;
    std::vector<float> out(static_cast<std::size_t>(blocks * format->block_elements));
    format->dequantize(reinterpret_cast<const std::byte*>(input.data()), static_cast<std::int64_t>(out.size()),
                       out.data());
    std::cout.write(reinterpret_cast<const char*>(out.data()), static_cast<std::streamsize>(out.size() * 4));
    return 0;
  }
  if (command == "encode" && format->quantize) {
    const std::vector<float> values = floats_of(input);
    std::vector<float> importance;
    if (argc > 3) {
      std::ifstream file(argv[3], std::ios::binary);
      importance = floats_of(all_of(file));
    }
    std::vector<std::byte> out(static_cast<std::size_t>(format->bytes(static_cast<std::int64_t>(values.size()))));
    format->quantize(values.data(), static_cast<std::int64_t>(values.size()),
                     importance.empty() ? nullptr : importance.data(), out.data());
    std::cout.write(reinterpret_cast<const char*>(out.data()), static_cast<std::streamsize>(out.size()));
    return 0;
  }
  return 2;
}
