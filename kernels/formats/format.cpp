#include "kernels/formats/format.h"

#include <algorithm>
#include <array>

#include "kernels/formats/codebook.h"
#include "kernels/formats/iq_quants.h"
#include "kernels/formats/k_quants.h"
#include "kernels/formats/legacy.h"
#include "kernels/formats/ternary.h"

namespace shoal {
namespace {

using namespace formats;  // the families this table puts together

/// Formats that are an element each.
template <class Stored, float (*Widen)(Stored)>
void widen(const std::byte* from, std::int64_t elements, float* to) {
  for (std::int64_t i = 0; i < elements; ++i) {
    Stored value;
    std::memcpy(&value, from + i * static_cast<std::int64_t>(sizeof value), sizeof value);
    to[i] = Widen(value);
  }
}
template <class Stored, Stored (*Narrow)(float)>
void narrow(const float* from, std::int64_t elements, const float*, std::byte* to) {
  for (std::int64_t i = 0; i < elements; ++i) {
    const Stored value = Narrow(from[i]);
    std::memcpy(to + i * static_cast<std::int64_t>(sizeof value), &value, sizeof value);
  }
}
float same(float f) { return f; }

template <class Stored, float (*Widen)(Stored), Stored (*Narrow)(float)>
constexpr QuantFormat plain(std::string_view name, std::uint32_t gguf_type) {
  return {name, gguf_type, 1, sizeof(Stored), widen<Stored, Widen>, narrow<Stored, Narrow>};
}
template <class Block>
constexpr QuantFormat blocks(std::string_view name, std::uint32_t gguf_type) {
  return {name,
          gguf_type,
          Block::kElements,
          sizeof(Block),
          dequantize_blocks<Block, decode>,
          quantize_blocks<Block, encode>};
}

constexpr std::array kFormats = {
    plain<float, same, same>("F32", 0),  plain<std::uint16_t, f16_to_f32, f32_to_f16>("F16", 1),
    blocks<BlockQ4_0>("Q4_0", 2),        blocks<BlockQ4_1>("Q4_1", 3),
    blocks<BlockQ5_0>("Q5_0", 6),        blocks<BlockQ5_1>("Q5_1", 7),
    blocks<BlockQ8_0>("Q8_0", 8),        blocks<BlockQ2_K>("Q2_K", 10),
    blocks<BlockQ3_K>("Q3_K", 11),       blocks<BlockQ4_K>("Q4_K", 12),
    blocks<BlockQ5_K>("Q5_K", 13),       blocks<BlockQ6_K>("Q6_K", 14),
    blocks<BlockIQ2_XXS>("IQ2_XXS", 16), blocks<BlockIQ2_XS>("IQ2_XS", 17),
    blocks<BlockIQ3_XXS>("IQ3_XXS", 18), blocks<BlockIQ1_S>("IQ1_S", 19),
    blocks<BlockIQ4_NL>("IQ4_NL", 20),   blocks<BlockIQ3_S>("IQ3_S", 21),
    blocks<BlockIQ2_S>("IQ2_S", 22),     blocks<BlockIQ4_XS>("IQ4_XS", 23),
    blocks<BlockIQ1_M>("IQ1_M", 29),     plain<std::uint16_t, bf16_to_f32, f32_to_bf16>("BF16", 30),
    blocks<BlockTQ1_0>("TQ1_0", 34),     blocks<BlockTQ2_0>("TQ2_0", 35),
    blocks<BlockMXFP4>("MXFP4", 39),
};

template <class Is>
const QuantFormat* find(Is is) {
  const auto* it = std::find_if(kFormats.begin(), kFormats.end(), is);
  return it == kFormats.end() ? nullptr : &*it;
}

}  // namespace

std::span<const QuantFormat> quant_formats() { return kFormats; }

const QuantFormat* find_format(std::string_view name) {
  return find([&](const QuantFormat& f) { return f.name == name; });
}

const QuantFormat* find_format(std::uint32_t gguf_type) {
  return find([&](const QuantFormat& f) { return f.gguf_type == gguf_type; });
}

}  // namespace shoal
