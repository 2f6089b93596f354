#include "kernels/backend.h"

#include <algorithm>

#include "base/error.h"
#include "kernels/device_moe.h"

// What back ends whose memory the host can reach have in common, and operations made of others.
namespace shoal {

Matrix Backend::fetch(const Matrix& placed) { return placed.clone(); }

void Backend::from_host(Rows<const float> x, Rows<float> to) {
  if (x.data == to.data) return;
  for (std::int64_t t = 0; t < x.rows; ++t) std::copy_n(x[t], x.cols, to[t]);
}

void Backend::on_host(std::size_t count, double, const std::function<void(std::size_t, std::size_t)>& body) {
  if (count > 0) body(0, count);
}

void Backend::fill_zero(Rows<float> out) {
  for (std::int64_t t = 0; t < out.rows; ++t) std::fill_n(out[t], out.cols, 0.0f);
}

void Backend::gather_rows(Rows<const float> x, std::span<const std::int64_t> rows, Rows<float> out) {
  for (std::int64_t i = 0; i < out.rows; ++i) std::copy_n(x[rows[static_cast<std::size_t>(i)]], out.cols, out[i]);
}

std::optional<std::int64_t> prompt_break_even(const MlaShape& shape, const MlaUp& up) {
  const std::int64_t rank = shape.kv_lora_rank, own = up.k_up[0].cols() + up.v_up[0].rows();
  if (2 * rank <= own) return std::nullopt;
  return own * rank / (2 * rank - own);
}

void Backend::mla_prompt_attention(Rows<const float>, const MlaShape&, const MlaUp&, float,
                                   std::span<const AttentionQuery>, const KvLayer&, Rows<float>) {
  fail("this device has no attention with keys and values made of latents");
}

void Backend::sample(Rows<const float>, std::span<const Draw>, std::span<std::int32_t>) {
  fail("this back end leaves sampling to the host");
}

std::unique_ptr<TokenExchange> Backend::token_exchange(Communicator&, const ExchangeShape&) { return nullptr; }
std::unique_ptr<DeviceMoe> Backend::device_moe(Communicator&, const DeviceMoeShape&) { return nullptr; }

void Backend::linears(Rows<const float> x, std::span<const Projection> projections) {
  for (const Projection& p : projections) linear(x, *p.w, p.bias, p.out);
}

void Backend::norm_linears(Rows<const float> branch, Rows<float> stream, std::span<const float> weight, float eps,
                           Rows<float> h, std::span<const Projection> projections) {
  if (branch.cols > 0) add(branch, stream);
  rms_norm(stream, weight, eps, h);
  linears(h, projections);
}

void Backend::rope_heads(Rows<const float> x, std::int64_t x_step, int heads, const RopeAngles& angles,
                         RopePairing pairing, Rows<float> out, std::int64_t out_step) {
  for (std::int64_t t = 0; t < x.rows; ++t)
    for (int h = 0; h < heads; ++h) std::copy_n(x[t] + h * x_step, 2 * angles.cos.cols, out[t] + h * out_step);
  rope(out, heads, out_step, angles, pairing);
}

void Backend::write_latent(Rows<float> latent, std::span<const float> weight, float eps, const RopeAngles& angles,
                           RopePairing pairing, std::span<const std::int64_t> slots, const KvLayer& cache) {
  const std::int64_t rank = std::ssize(weight), behind = latent.cols - rank;
  rms_norm(latent.columns(0, rank), weight, eps, latent.columns(0, rank));
  rope(latent.columns(rank, behind), 1, behind, angles, pairing);
  write_kv(latent, slots, 0, cache);
}

}  // namespace shoal
