#include "kernels/packed_codes.h"

#include <cstring>

#include "kernels/packed_format.h"

namespace shoal {
namespace {

constexpr int kPanel = PackedFormat::kPanel, kQuads = PackedFormat::kQuads, kQuadBytes = PackedFormat::kQuadBytes;
constexpr int kSteps = 8, kHalfQuads = kSteps / 2 * kQuads;  // of a record; of its half

// ---- Planes ----

/// The planes that codes of so many bits are cut into, lowest bits first.
struct Planes {
  int width[2];
};
constexpr Planes planes_of(int bits) {
  switch (bits) {
    case 3:
      return {{2, 1}};
    case 5:
      return {{4, 1}};
    case 6:
      return {{4, 2}};
    default:
      return {{bits, 0}};
  }
}

/// Adds bits [low, low + width) of the expanded codes of a step as a plane; returns where the next one begins.
std::uint8_t* put_plane(const std::uint8_t* codes, int low, int width, std::uint8_t* to) {
  const int mask = (1 << width) - 1;
  for (int q = 0; q < kQuads; ++q) {
    const std::uint8_t* from = codes + q * kQuadBytes;
    std::uint8_t* part = to + q % width * kQuadBytes;
    const int shift = q / width * width;
    for (int i = 0; i < kQuadBytes; ++i) part[i] |= static_cast<std::uint8_t>(((from[i] >> low) & mask) << shift);
  }
  return to + width * kQuadBytes;
}

const std::uint8_t* get_plane(const std::uint8_t* from, int low, int width, std::uint8_t* codes) {
  const int mask = (1 << width) - 1;
  for (int q = 0; q < kQuads; ++q) {
    const std::uint8_t* part = from + q % width * kQuadBytes;
    const int shift = q / width * width;
    std::uint8_t* to = codes + q * kQuadBytes;
    for (int i = 0; i < kQuadBytes; ++i) to[i] |= static_cast<std::uint8_t>(((part[i] >> shift) & mask) << low);
  }
  return from + width * kQuadBytes;
}

// ---- Fields of two bits and single bits, and four bytes ----

/// Four fields of two bits as the bytes of an integer.
constexpr std::uint32_t spread_pairs(std::uint32_t fields) {
  return (fields | fields << 6 | fields << 12 | fields << 18) & 0x03030303u;
}
constexpr std::uint32_t spread_bits(std::uint32_t bits) { return (bits * 0x00204081u) & 0x01010101u; }

void store(std::uint32_t four, std::uint8_t* to) { std::memcpy(to, &four, 4); }

// ---- Points ----

constexpr int sign_bit(int point_columns) { return point_columns == 8 ? 2 : 3; }

/// Where a step's parts lie.
template <class Byte>
struct PointParts {
  Byte* numbers;  // [registers][64]
  Byte* extra;    // [registers][extra_bits][8]
  Byte* signs;    // [16][4]
  PointParts(Byte* step, int registers, int extra_bits)
      : numbers(step), extra(step + registers * 64), signs(extra + registers * extra_bits * 8) {}
};

void take_points(const CodeLayout& f, const std::byte* step, std::uint8_t* codes) {
  const int registers = f.point_columns == 4 ? 2 : 1, quads = f.point_columns / 4;
  const PointParts<const std::byte> parts(step, registers, f.extra_bits);
  const int shift = sign_bit(f.point_columns);
  for (int r = 0; r < kPanel; ++r) {
    std::uint32_t signs;
    std::memcpy(&signs, parts.signs + r * 4, 4);
    for (int point = 0; point < kQuads / quads; ++point) {
      const int in_register = r * 4 + point % 4;
      auto number = static_cast<unsigned>(parts.numbers[point / 4 * 64 + in_register]);
      for (int bit = 0; bit < f.extra_bits; ++bit) {
        const auto from = static_cast<unsigned>(parts.extra[(point / 4 * f.extra_bits + bit) * 8 + in_register / 8]);
        number |= (from >> (in_register % 8) & 1u) << (8 + bit);
      }
      std::uint8_t* to = codes + point * quads * kQuadBytes + r * 4;
      const auto sign_of = [&](int q) { return spread_bits(signs >> (4 * q) & 15u) << shift; };
      const std::uint32_t* fours = f.point_codes + number * static_cast<unsigned>(quads);
      for (int q = 0; q < quads; ++q) store(fours[q] | sign_of(quads * point + q), to + q * kQuadBytes);
    }
  }
}

// ---- Trits ----

void take_trits(const CodeLayout& f, const std::byte* record, int step, std::uint8_t* codes) {
  const std::byte* area = record + f.codes_at;
  const std::uint8_t* fifth = f.points + 256;
  const int half = step / (kSteps / 2);
  for (int q = 0; q < kQuads; ++q) {
    const int of_half = step % (kSteps / 2) * kQuads + q;
    std::uint8_t* to = codes + q * kQuadBytes;
    const auto* bytes = reinterpret_cast<const std::uint8_t*>(area) + half * kHalfTritBytes;
    if (of_half < kWholeTritQuads) {
      bytes += of_half / 4 * 64 + of_half % 4;
      for (int r = 0; r < kPanel; ++r) store(f.point_codes[bytes[r * 4]], to + r * 4);
    } else if (of_half < kWholeTritQuads + kFifthTritQuads) {
      bytes += (of_half - kWholeTritQuads) * 64;
      for (int i = 0; i < kQuadBytes; ++i) to[i] = fifth[bytes[i]];
    } else {
      bytes = reinterpret_cast<const std::uint8_t*>(area) + 2 * kHalfTritBytes + half * 2 + of_half - kWholeTritQuads -
              kFifthTritQuads;
      for (int r = 0; r < kPanel; ++r) store(spread_pairs(bytes[r * 4]), to + r * 4);
    }
    if (f.deltas_at == 0) continue;
    const auto* greater = reinterpret_cast<const std::uint8_t*>(record) + f.deltas_at + (step * kQuads + q) / 2 * 2;
    for (int r = 0; r < kPanel; ++r) {
      const unsigned by = (greater[r / 8] >> (r % 8) & 1u) << 2;
      for (int c = 0; c < 4; ++c) to[r * 4 + c] = static_cast<std::uint8_t>(to[r * 4 + c] | by);
    }
  }
}

}  // namespace

CodeLayout code_layout(const PackedFormat& f) {
  const int codes_at = f.head_bytes() + f.scale_bytes();
  CodeLayout layout{};
  layout.coding = f.coding;
  layout.bits = f.bits;
  layout.codes_at = codes_at;
  layout.step_bytes = f.step_bytes();
  if (f.points) {
    layout.point_columns = f.points->columns;
    layout.extra_bits = f.points->extra_bits;
    layout.points = f.points->table.data();
    layout.point_codes = f.points->codes.data();
  }
  if (f.deltas) layout.deltas_at = codes_at + kTritBytes;
  return layout;
}

void put_planes(const PackedFormat& f, const std::uint8_t* codes, std::byte* record) {
  std::byte* at = record + f.head_bytes() + f.scale_bytes();
  const auto planes = planes_of(f.bits);
  for (int s = 0; s < f.record() / PackedFormat::kStep; ++s, at += f.step_bytes(), codes += kQuads * kQuadBytes) {
    std::uint8_t* next = put_plane(codes, 0, planes.width[0], reinterpret_cast<std::uint8_t*>(at));
    if (planes.width[1] > 0) put_plane(codes, planes.width[0], planes.width[1], next);
  }
}

void put_points(const PackedFormat& f, int row, const std::uint16_t* numbers, const std::uint32_t* signs,
                std::byte* record) {
  const PointSet& set = *f.points;
  const int points = PackedFormat::kStep / set.columns;  // of a step
  std::byte* step = record + f.head_bytes();
  for (int s = 0; s < kSteps; ++s, step += f.step_bytes(), numbers += points) {
    const PointParts<std::byte> parts(step, set.registers(), set.extra_bits);
    for (int point = 0; point < points; ++point) {
      const unsigned number = numbers[point];
      const int in_register = row * 4 + point % 4;
      parts.numbers[point / 4 * 64 + in_register] = static_cast<std::byte>(number & 255u);
      for (int bit = 0; bit < set.extra_bits; ++bit) {
        std::byte& to = parts.extra[(point / 4 * set.extra_bits + bit) * 8 + in_register / 8];
        to |= static_cast<std::byte>((number >> (8 + bit) & 1u) << (in_register % 8));
      }
    }
    std::memcpy(parts.signs + row * 4, &signs[s], 4);
  }
}

void put_trits(const PackedFormat& f, int row, const std::uint8_t* codes, std::byte* record) {
  std::byte* area = record + f.head_bytes();
  for (int half = 0; half < 2; ++half, codes += kHalfQuads * 4) {
    for (int k = 0; k < kWholeTritQuads; ++k) {
      std::uint32_t four;
      std::memcpy(&four, codes + k * 4, 4);
      // The top byte of the product: 1, 3, 9 and 27 times the trits, which carries nothing over from the lower bytes.
      four = (four & 0x03030303u) * 0x0103091bu >> 24;
      const unsigned fifth = codes[kWholeTritQuads * 4 + k] & 3u;
      area[half * kHalfTritBytes + k / 4 * 64 + row * 4 + k % 4] = static_cast<std::byte>(four + 81 * fifth);
    }
    for (int i = 0; i < 2; ++i) {
      const std::uint8_t* last = codes + (kWholeTritQuads + kFifthTritQuads + i) * 4;
      const unsigned pairs = (last[0] & 3u) | (last[1] & 3u) << 2 | (last[2] & 3u) << 4 | (last[3] & 3u) << 6;
      area[2 * kHalfTritBytes + row * 4 + half * 2 + i] = static_cast<std::byte>(pairs);
    }
    for (int eight = 0; f.deltas && eight < kHalfQuads / 2; ++eight) {
      const unsigned greater = unsigned{codes[eight * 8]} >> 2 & 1u;
      area[kTritBytes + (half * kHalfQuads / 2 + eight) * 2 + row / 8] |= static_cast<std::byte>(greater << (row % 8));
    }
  }
}

void take_codes(const CodeLayout& f, const std::byte* record, int step, std::uint8_t* codes) {
  if (f.coding == Coding::trits) return take_trits(f, record, step, codes);
  const std::byte* at = record + f.codes_at + step * f.step_bytes;
  if (f.coding == Coding::points) return take_points(f, at, codes);
  std::memset(codes, 0, kQuads * kQuadBytes);
  const auto planes = planes_of(f.bits);
  const std::uint8_t* next = get_plane(reinterpret_cast<const std::uint8_t*>(at), 0, planes.width[0], codes);
  if (planes.width[1] > 0) get_plane(next, planes.width[0], planes.width[1], codes);
}

void spread_table(PointSet& set) {
  const auto size = static_cast<std::size_t>(set.size());
  for (std::size_t i = 0; i < size; ++i) {
    const std::uint32_t first = spread_pairs(set.table[i]), second = set.table[size + i];
    if (set.columns == 8) {
      set.codes[2 * i] = first;
      set.codes[2 * i + 1] = spread_pairs(second);
    } else {
      set.codes[i] = set.columns == 4 ? first | spread_bits(second) << 2 : first;
    }
  }
}

const PointSet& trit_set() {
  static const PointSet set = [] {
    PointSet trits{.columns = 5};
    for (unsigned five = 0; five < 243; ++five) {
      const unsigned four = five % 3 | five / 3 % 3 << 2 | five / 9 % 3 << 4 | five / 27 % 3 << 6;
      trits.table[five] = static_cast<std::uint8_t>(four);
      trits.table[256 + five] = static_cast<std::uint8_t>(five / 81);
    }
    spread_table(trits);
    return trits;
  }();
  return set;
}

}  // namespace shoal
