// What the GPU's back end keeps in device memory, and for how long: lists on their way there, lists of matrices,
// graphs.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <random>

#include "base/cuda/emulation/faults.h"
#include "kernels/cuda/products.h"
#include "kernels/cuda/repetition.h"
#include "kernels/reference.h"
#include "tests/unit/device_stream_test_support.h"

namespace shoal::cuda {
namespace {

class GpuMemory : public OnStream {
 protected:
  static std::size_t free_bytes() {
    std::size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
    return free;
  }
  std::vector<float> floats(std::int64_t n) {
    std::vector<float> v(static_cast<std::size_t>(n));
    for (float& f : v) f = std::normal_distribution<float>()(random);
    return v;
  }

  std::mt19937 random{61};
};

/// Experts on the device, and a batch for them.
class GpuExperts : public GpuMemory {
 protected:
  static constexpr std::int64_t kTokens = 100, kHidden = 24, kWidth = 16;
  static constexpr int kExperts = 3;

  GpuExperts() {
    for (int e = 0; e < kExperts; ++e) {
      at_host.push_back({matrix(kWidth, kHidden), matrix(kWidth, kHidden), matrix(kHidden, kWidth)});
      experts.push_back(placed_copy(at_host.back()));
    }
    x = floats(kTokens * kHidden);
    batch.first = {0};
    for (std::int32_t t = 0; t < kTokens; ++t) {
      for (const std::int32_t e : {t % 3, (t + 1) % 3}) {
        batch.expert.push_back(e);
        batch.weight.push_back(0.25f * static_cast<float>(e + 1));
      }
      batch.first.push_back(static_cast<std::int32_t>(batch.expert.size()));
    }
  }
  Matrix matrix(std::int64_t rows, std::int64_t cols) {
    Matrix m(DType::f32, rows, cols);
    const auto values = floats(rows * cols);
    m.pack_rows(0, rows, reinterpret_cast<const std::byte*>(values.data()), cols * 4);
    return m;
  }
  FeedForward placed_copy(const FeedForward& of) {
    FeedForward copy{of.gate.clone(), of.up.clone(), of.down.clone()};
    for (Matrix* m : {&copy.gate, &copy.up, &copy.down}) m->set_placed(placer.place(*m));
    return copy;
  }
  std::vector<float> run(Products& products) {
    const DeviceBlock in(x.size() * 4), out(x.size() * 4);
    check(cudaMemcpyAsync(in.data(), x.data(), in.bytes(), cudaMemcpyHostToDevice, stream), "copy");
    auto* results = reinterpret_cast<float*>(out.data());
    products.experts(batch, experts, {reinterpret_cast<const float*>(in.data()), kTokens, kHidden},
                     {results, kTokens, kHidden});
    return read(results, x.size());
  }

  MatrixPlacer placer;
  std::vector<FeedForward> at_host, experts;
  std::vector<float> x;
  ExpertBatch batch;
};

TEST_F(GpuMemory, UploadsOfAnySizeArrive) {
  Uploads uploads(stream, 4096);
  Scratch room(stream);
  std::vector<std::int32_t> numbers(10'000);
  std::iota(numbers.begin(), numbers.end(), 5);
  EXPECT_THROW(uploads.put(numbers), Error);
  const std::span<const std::int32_t> all(numbers);
  EXPECT_FALSE(uploads.fit(all));
  EXPECT_EQ(read(uploads.keep(all, room), numbers.size()), numbers);
}

TEST_F(GpuExperts, LargeBatchesAreLikeSmallOnes) {
  std::vector<std::vector<float>> results;
  for (const std::size_t bytes : {4096, 1 << 20}) {  // too little for the batch's lists at once, and enough
    Uploads uploads(stream, bytes);
    WeightVectors vectors(stream, uploads);
    Products products(Compute::f32, stream, uploads, vectors);
    results.push_back(run(products));
  }
  EXPECT_EQ(results[0], results[1]);
  std::vector<float> expected(x.size());
  for (std::int64_t t = 0; t < kTokens; ++t) {
    batch.rows.push_back(x.data() + t * kHidden);
    batch.out.push_back(expected.data() + t * kHidden);
  }
  make_reference_backend()->experts(batch, at_host);
  for (std::size_t i = 0; i < expected.size(); ++i)
    EXPECT_NEAR(results[0][i], expected[i], 1e-4 * (1 + std::abs(expected[i])));
}

TEST_F(GpuExperts, ListsOfMovedExpertsLeave) {
  Uploads uploads(stream, 1 << 20);
  WeightVectors vectors(stream, uploads);
  Products products(Compute::f32, stream, uploads, vectors);
  const auto before = run(products);
  const std::size_t free = free_bytes();
  for (int move = 0; move < 3; ++move) {
    experts[0] = placed_copy(at_host[0]);
    EXPECT_EQ(run(products), before);
    EXPECT_EQ(free_bytes(), free);
  }
}

class GpuGraphs : public GpuMemory {
 protected:
  void run(Repetition& repetition, std::int64_t key) {
    repetition.run(
        {key}, [] { return std::uint64_t{0}; },
        [&] {
          ++asked;
          if (asked == fails_at) emulation::set_last_error(cudaErrorNoDevice);
          check(cudaMemsetAsync(memory.data(), static_cast<int>(key), 1, stream), "set");
        });
    EXPECT_EQ(read(memory.data(), 1), std::vector{static_cast<std::byte>(key)});
  }
  DeviceBlock memory{1};
  int asked = 0, fails_at = 0;
};

TEST_F(GpuGraphs, WhatWasNotAskedForTheLongestGoes) {
  Repetition repetition(stream, 2);
  const auto asks = [&](std::int64_t key) {
    const int before = asked;
    run(repetition, key);
    return asked > before;
  };
  for (const std::int64_t key : {1, 2}) {
    EXPECT_TRUE(asks(key));  // by hand
    EXPECT_TRUE(asks(key));  // recorded
    EXPECT_FALSE(asks(key));
  }
  for (std::int64_t key = 10; key < 50; ++key) EXPECT_TRUE(asks(key));  // once each: these take no graph's place
  EXPECT_FALSE(asks(2));
  EXPECT_FALSE(asks(1));
  asks(3), asks(3);  // in the place of 2
  EXPECT_FALSE(asks(3));
  EXPECT_FALSE(asks(1));
  EXPECT_TRUE(asks(2));
}

TEST_F(GpuGraphs, ALaunchThatFailedIsNotRepeated) {
  Repetition repetition(stream);
  fails_at = 2;  // while it is recorded
  const std::uint64_t launches = emulation::graph_launches();
  for (int i = 0; i < 4; ++i) run(repetition, 1);
  EXPECT_EQ(emulation::graph_launches(), launches);
  EXPECT_EQ(asked, 5);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

TEST_F(GpuGraphs, AnEarlierErrorIsNotLost) {
  Repetition repetition(stream);
  run(repetition, 1);
  emulation::set_last_error(cudaErrorNoDevice);
  EXPECT_THROW(run(repetition, 1), Error);
  EXPECT_EQ(asked, 1);
  run(repetition, 1);
}

}  // namespace
}  // namespace shoal::cuda
