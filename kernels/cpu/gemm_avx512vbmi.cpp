#include "kernels/cpu/bf16_dot.h"

/// Products of F8 weights with BF16 activations on CPUs that have AVX512_VBMI beside AVX512_BF16: codes become BF16 by
/// two look-ups, one for each of its bytes.
namespace shoal::cpu {
namespace {

/// The BF16 bits of the E4M3 codes without a sign, of one byte of it. (NaN codes are not known here.)
struct Table {
  alignas(64) std::uint8_t byte[128];
};
constexpr Table table_of_byte(int shift) {
  Table table{};
  for (unsigned code = 0; code < 128; ++code) {
    unsigned exponent = code >> 3, mantissa = code & 7u, bits = 0;
    if (exponent > 0) {
      bits = ((exponent + 120u) << 7) | (mantissa << 4);
    } else if (mantissa > 0) {  // m * 2^-9: its highest bit becomes the hidden one
      exponent = 127 - 9 + 2;
      while ((mantissa & 4u) == 0) mantissa <<= 1, --exponent;
      bits = (exponent << 7) | ((mantissa & 3u) << 5);
    }
    table.byte[code] = static_cast<std::uint8_t>(bits >> shift);
  }
  return table;
}
constexpr Table kLow = table_of_byte(0), kHigh = table_of_byte(8);

/// Byte 4r and 4r + 1 take row r's code of the first column, 4r + 2 and 4r + 3 that of the second.
struct Order {
  alignas(64) std::uint8_t from[64];
};
constexpr Order order_of_pairs() {
  Order order{};
  for (int i = 0; i < 64; ++i) order.from[i] = static_cast<std::uint8_t>(i / 4 + (i & 2 ? 16 : 0));
  return order;
}
constexpr Order kPairs = order_of_pairs();

struct F8Table : Bf16Dot {
  static constexpr std::int64_t kStepBytes = 32;
  static constexpr bool kPlain = false;
  static SHOAL_INLINE Loaded load(const std::byte* p) {
    constexpr int kAhead = 2048;  // bytes: converting takes so long that memory must not be waited for as well
    _mm_prefetch(reinterpret_cast<const char*>(p) + kAhead, _MM_HINT_T0);
    constexpr __mmask64 kLowBytes = 0x5555555555555555u;
    const __m512i both = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    const __m512i code = _mm512_permutexvar_epi8(_mm512_load_si512(kPairs.from), both);
    __m512i value = _mm512_mask2_permutex2var_epi8(_mm512_load_si512(kLow.byte), code, kLowBytes,
                                                   _mm512_load_si512(kLow.byte + 64));
    value = _mm512_mask2_permutex2var_epi8(_mm512_load_si512(kHigh.byte), value, ~kLowBytes,
                                           _mm512_load_si512(kHigh.byte + 64));
    constexpr int kOrAnd = 0xf8;  // a | (b & c)
    return _mm512_ternarylogic_epi32(value, code, _mm512_set1_epi16(static_cast<short>(0x8000)), kOrAnd);
  }
};

/// The look-ups keep pace with the products, so codes are converted anew for every tile.
void run(const Weights& w, std::int64_t first, std::int64_t panels, const PackedTile* tiles, int n_tiles,
         std::byte* scratch) {
  run_blocks<F8Table, F8Table>(w, first, panels, tiles, n_tiles, scratch, [](auto...) {});
}

}  // namespace

void fill_gemm_avx512vbmi(KernelTable& table) {
  table.gemm_bf16[int(WeightKind::f8)] = {tile_width, pair_tile_bytes, pack_pairs, scratch_none, run};
}

}  // namespace shoal::cpu
