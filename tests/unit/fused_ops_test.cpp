// Operations made of others: what a back end does in one go is what it does step by step, to the bit.
#include "tests/unit/kernel_test_support.h"

namespace shoal::kernel_test {
namespace {

class FusedOps : public EveryIsa {};

TEST_P(FusedOps, NormLinearsAreItsParts) {
  for (const Compute compute : computes()) {
    const auto b = backend(2, compute);
    Random random(41);
    for (const std::int64_t width : {96, 416}) {  // no whole tiles of 128
      std::vector<Matrix> w;
      w.push_back(random_matrix(random, DType::bf16, 33, width));
      w.push_back(random_matrix(random, DType::f8_e4m3, 130, width));
      w.push_back(random_matrix(random, DType::f8_e4m3, 20, width));
      w.push_back(random_matrix(random, DType::f32, 7, width));
      w.push_back(random_quantized(random, *find_format("Q8_0"), 40, width).matrix);
      w.push_back(random_quantized(random, *find_format("Q4_0"), 21, width).matrix);
      for (const std::int64_t tokens : {1, 19}) {
        for (const bool adds : {false, true}) {
          const auto weight = random.floats(width), x = random.floats(tokens * width), bias = random.floats(33);
          auto more = random.floats(tokens * width);
          more[5] = 40.0f;
          const auto rows = [&](std::vector<float>& v) {
            return Rows<float>(v.data(), tokens, std::ssize(v) / tokens);
          };
          std::vector<float> stream = x, h(x.size(), NAN), stream_parts = x, h_parts(x.size(), NAN);
          std::vector<std::vector<float>> out, parts;
          std::vector<Projection> projections;
          for (const Matrix& m : w) {
            out.emplace_back(std::size_t(tokens * m.rows()), NAN);
            parts.push_back(out.back());
          }
          for (std::size_t i = 0; i < w.size(); ++i)
            projections.push_back(
                {&w[i], i == 0 ? std::span<const float>(bias) : std::span<const float>(), rows(out[i])});
          b->norm_linears(adds ? rows(more) : Rows<float>(), rows(stream), weight, 1e-6f, rows(h), projections);

          if (adds) b->add(rows(more), rows(stream_parts));
          b->rms_norm(rows(stream_parts), weight, 1e-6f, rows(h_parts));
          for (std::size_t i = 0; i < w.size(); ++i)
            b->linear(rows(h_parts), w[i], projections[i].bias, rows(parts[i]));
          EXPECT_TRUE(same_bits(stream.data(), stream_parts.data(), std::ssize(stream)));
          EXPECT_TRUE(same_bits(h.data(), h_parts.data(), std::ssize(h)));
          for (std::size_t i = 0; i < w.size(); ++i)
            EXPECT_TRUE(same_bits(out[i].data(), parts[i].data(), std::ssize(out[i])))
                << "compute " << int(compute) << ", width " << width << ", matrix " << i;
        }
      }
    }
  }
}

TEST_P(FusedOps, HeadsAreRotatedOnTheirWay) {
  Random random(42);
  const auto b = backend();
  const std::int64_t tokens = 3, heads = 5, pairs = 8, from = 40, to = 24;
  const auto x = random.floats(tokens * heads * from), cos = random.floats(tokens * pairs),
             sin = random.floats(tokens * pairs);
  const RopeAngles angles{{cos.data(), tokens, pairs}, {sin.data(), tokens, pairs}};
  for (const RopePairing pairing : {RopePairing::interleaved, RopePairing::halves}) {
    std::vector<float> out(std::size_t(tokens * heads * to), 7.0f), expected = out;
    b->rope_heads({x.data(), tokens, heads * from}, from, int(heads), angles, pairing, {out.data(), tokens, heads * to},
                  to);
    for (std::int64_t t = 0; t < tokens; ++t)
      for (std::int64_t h = 0; h < heads; ++h)
        std::copy_n(x.data() + (t * heads + h) * from, 2 * pairs, expected.data() + (t * heads + h) * to);
    b->rope({expected.data(), tokens, heads * to}, int(heads), to, angles, pairing);
    EXPECT_TRUE(same_bits(out.data(), expected.data(), std::ssize(out)));  // what lies between heads stays, too
  }
}

TEST_P(FusedOps, LatentsAreNormedRotatedAndWritten) {
  Random random(43);
  const auto b = backend(), reference = make_reference_backend();
  const std::int64_t tokens = 3, rank = 80, pairs = 9, width = rank + 2 * pairs;
  const auto x = random.floats(tokens * width, 3.0f), weight = random.floats(rank), cos = random.floats(tokens * pairs),
             sin = random.floats(tokens * pairs);
  const RopeAngles angles{{cos.data(), tokens, pairs}, {sin.data(), tokens, pairs}};
  const std::vector<std::int64_t> slots{5, 0, 3};
  for (const RopePairing pairing : {RopePairing::interleaved, RopePairing::halves})
    for (const KvType type : {KvType::f32, KvType::bf16, KvType::fp8, KvType::int8}) {
      std::vector<float> stored, expected;
      for (Backend* each : {b.get(), reference.get()}) {
        const auto memory = each->allocate(static_cast<std::size_t>(6 * kv_row_bytes(type, width)));
        const KvLayer layer{memory.get(), type, 2, int(width)};
        auto latent = x;
        each->write_latent({latent.data(), tokens, width}, weight, 1e-6f, angles, pairing, slots, layer);
        auto& to = each == b.get() ? stored : expected;
        for (const std::int64_t slot : slots)
          for (std::int64_t c = 0; c < width; ++c) to.push_back(decode_kv(type, layer.row(slot), c, width));
      }
      // A value next to a rounding border may fall on either side of it.
      const double step = type == KvType::f32 ? 1e-5 : type == KvType::bf16 ? 8e-3 : type == KvType::fp8 ? 0.13 : 0.05;
      expect_near(stored, expected, step, std::string(name_of(type)));
    }
}

/// Gate and up in one product where weights are FP8: what the three products give one by one.
TEST_P(FusedOps, FeedForwardIsItsParts) {
  for (const Compute compute : computes()) {
    const auto b = backend(2, compute);
    Random random(44);
    for (const auto& [type, hidden, width] : {std::tuple{DType::f8_e4m3, 136, 140}, {DType::bf16, 64, 40}}) {
      const FeedForward ffn{random_matrix(random, type, width, hidden), random_matrix(random, type, width, hidden),
                            random_matrix(random, type, hidden, width)};
      for (const std::int64_t tokens : {1, 17}) {
        const auto x = random.floats(tokens * hidden, 0.1f);
        std::vector<float> out(x.size(), NAN), expected(x.size(), NAN), gate(std::size_t(tokens * width)),
            up(gate.size());
        b->feed_forward({x.data(), tokens, hidden}, ffn, {out.data(), tokens, hidden});
        b->linear({x.data(), tokens, hidden}, ffn.gate, {}, {gate.data(), tokens, width});
        b->linear({x.data(), tokens, hidden}, ffn.up, {}, {up.data(), tokens, width});
        for (std::size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1.0f + std::exp(-gate[i])) * up[i];
        b->linear({gate.data(), tokens, width}, ffn.down, {}, {expected.data(), tokens, hidden});
        expect_near(out, expected, compute == Compute::f32 ? 1e-5 : 4e-2, std::string(name_of(type)));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, FusedOps, all_isas(), isa_name);

}  // namespace
}  // namespace shoal::kernel_test
