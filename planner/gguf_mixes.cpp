#include "planner/gguf_mixes.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <span>

namespace shoal {
namespace {

using Role = GgufRole;

/// What most tensors of a mix get.
struct Mix {
  std::string_view name, base;
};
constexpr auto mixes = std::to_array<Mix>({
    {"F32", "F32"},         {"F16", "F16"},       {"BF16", "BF16"},    {"Q4_0", "Q4_0"},     {"Q4_1", "Q4_1"},
    {"Q5_0", "Q5_0"},       {"Q5_1", "Q5_1"},     {"Q8_0", "Q8_0"},    {"Q2_K", "Q2_K"},     {"Q2_K_S", "Q2_K"},
    {"Q3_K_S", "Q3_K"},     {"Q3_K_M", "Q3_K"},   {"Q3_K_L", "Q3_K"},  {"Q4_K_S", "Q4_K"},   {"Q4_K_M", "Q4_K"},
    {"Q5_K_S", "Q5_K"},     {"Q5_K_M", "Q5_K"},   {"Q6_K", "Q6_K"},    {"IQ1_S", "IQ1_S"},   {"IQ1_M", "IQ1_M"},
    {"IQ2_XXS", "IQ2_XXS"}, {"IQ2_XS", "IQ2_XS"}, {"IQ2_S", "IQ2_XS"}, {"IQ2_M", "IQ2_S"},   {"IQ3_XXS", "IQ3_XXS"},
    {"IQ3_XS", "IQ3_S"},    {"IQ3_S", "IQ3_S"},   {"IQ3_M", "IQ3_S"},  {"IQ4_NL", "IQ4_NL"}, {"IQ4_XS", "IQ4_XS"},
    {"TQ1_0", "TQ1_0"},     {"TQ2_0", "TQ2_0"},
});

/// Where a rule holds. Layers are counted from the front; "eighth" is of all layers.
enum class Where {
  everywhere,
  first_two,
  first_four,
  first_sixteenth,
  first_eighth,
  middle,         // neither in the first nor in the last eighth
  more_bits,      // the first and the last eighth, and every third layer between them
  grouped,        // four or more query heads share a KV head
  grouped_or_moe  // that, or four or more experts
};

struct Rule {
  std::string_view mix;
  Role role;
  Where where;
  std::string_view type;
};

/// The first rule that holds counts.
constexpr auto rules = std::to_array<Rule>({
    {"IQ1_S", Role::token_embd, Where::everywhere, "Q2_K"},
    {"IQ1_M", Role::token_embd, Where::everywhere, "Q2_K"},
    {"IQ2_XXS", Role::token_embd, Where::everywhere, "Q2_K"},
    {"IQ2_XS", Role::token_embd, Where::everywhere, "Q2_K"},
    {"IQ2_S", Role::token_embd, Where::everywhere, "IQ3_S"},
    {"IQ2_M", Role::token_embd, Where::everywhere, "IQ3_S"},
    {"IQ3_XXS", Role::token_embd, Where::everywhere, "IQ3_S"},
    {"TQ1_0", Role::token_embd, Where::everywhere, "Q4_K"},
    {"TQ2_0", Role::token_embd, Where::everywhere, "Q4_K"},

    {"IQ1_S", Role::attn_v, Where::grouped_or_moe, "Q4_K"},
    {"IQ1_M", Role::attn_v, Where::grouped_or_moe, "Q4_K"},
    {"IQ2_XXS", Role::attn_v, Where::grouped_or_moe, "Q4_K"},
    {"IQ2_XS", Role::attn_v, Where::grouped_or_moe, "Q4_K"},
    {"IQ2_S", Role::attn_v, Where::grouped_or_moe, "Q4_K"},
    {"IQ2_M", Role::attn_v, Where::grouped_or_moe, "Q4_K"},
    {"IQ1_S", Role::attn_v, Where::everywhere, "Q2_K"},
    {"IQ1_M", Role::attn_v, Where::everywhere, "Q2_K"},
    {"IQ2_XXS", Role::attn_v, Where::everywhere, "Q2_K"},
    {"IQ2_XS", Role::attn_v, Where::everywhere, "Q2_K"},
    {"IQ2_S", Role::attn_v, Where::everywhere, "IQ3_S"},
    {"IQ2_M", Role::attn_v, Where::everywhere, "IQ3_S"},
    {"Q2_K", Role::attn_v, Where::grouped, "Q4_K"},
    {"Q2_K", Role::attn_v, Where::everywhere, "Q3_K"},
    {"Q2_K_S", Role::attn_v, Where::grouped, "Q4_K"},
    {"IQ3_XXS", Role::attn_v, Where::grouped, "Q4_K"},
    {"IQ3_XS", Role::attn_v, Where::grouped, "Q4_K"},
    {"IQ3_S", Role::attn_v, Where::grouped, "Q4_K"},
    {"IQ3_M", Role::attn_v, Where::everywhere, "Q4_K"},
    {"Q3_K_M", Role::attn_v, Where::first_two, "Q5_K"},
    {"Q3_K_M", Role::attn_v, Where::everywhere, "Q4_K"},
    {"Q3_K_L", Role::attn_v, Where::everywhere, "Q5_K"},
    {"IQ4_NL", Role::attn_v, Where::grouped, "Q5_K"},
    {"IQ4_XS", Role::attn_v, Where::grouped, "Q5_K"},
    {"Q4_K_M", Role::attn_v, Where::more_bits, "Q6_K"},
    {"Q5_K_M", Role::attn_v, Where::more_bits, "Q6_K"},
    {"Q4_K_S", Role::attn_v, Where::first_four, "Q5_K"},

    {"IQ3_XS", Role::attn_k, Where::everywhere, "IQ3_XXS"},
    {"IQ3_XXS", Role::attn_k, Where::everywhere, "IQ2_S"},
    {"IQ3_XS", Role::attn_q, Where::everywhere, "IQ3_XXS"},
    {"IQ3_XXS", Role::attn_q, Where::everywhere, "IQ2_S"},

    {"IQ1_S", Role::attn_output, Where::everywhere, "IQ2_XXS"},
    {"IQ1_M", Role::attn_output, Where::everywhere, "IQ2_XXS"},
    {"IQ2_S", Role::attn_output, Where::everywhere, "IQ3_S"},
    {"IQ2_M", Role::attn_output, Where::everywhere, "IQ3_S"},
    {"Q2_K", Role::attn_output, Where::everywhere, "Q3_K"},
    {"IQ3_XXS", Role::attn_output, Where::everywhere, "IQ3_S"},
    {"Q3_K_M", Role::attn_output, Where::everywhere, "Q4_K"},
    {"Q3_K_L", Role::attn_output, Where::everywhere, "Q5_K"},
    {"IQ3_M", Role::attn_output, Where::everywhere, "Q4_K"},

    {"IQ1_S", Role::ffn_down, Where::first_eighth, "Q2_K"},
    {"IQ1_M", Role::ffn_down, Where::first_eighth, "Q2_K"},
    {"IQ2_XXS", Role::ffn_down, Where::first_eighth, "Q2_K"},
    {"IQ2_XS", Role::ffn_down, Where::first_eighth, "Q2_K"},
    {"IQ2_S", Role::ffn_down, Where::first_eighth, "IQ3_S"},
    {"IQ2_M", Role::ffn_down, Where::first_eighth, "IQ3_S"},
    {"Q2_K", Role::ffn_down, Where::everywhere, "Q3_K"},
    {"Q2_K_S", Role::ffn_down, Where::first_eighth, "Q4_K"},
    {"Q3_K_M", Role::ffn_down, Where::first_sixteenth, "Q5_K"},
    {"Q3_K_M", Role::ffn_down, Where::everywhere, "Q4_K"},
    {"IQ3_M", Role::ffn_down, Where::first_eighth, "Q4_K"},
    {"Q3_K_L", Role::ffn_down, Where::everywhere, "Q5_K"},
    {"Q4_K_M", Role::ffn_down, Where::more_bits, "Q6_K"},
    {"Q5_K_M", Role::ffn_down, Where::more_bits, "Q6_K"},
    {"IQ4_NL", Role::ffn_down, Where::first_eighth, "Q5_K"},
    {"IQ4_XS", Role::ffn_down, Where::first_eighth, "Q5_K"},
    {"Q4_K_S", Role::ffn_down, Where::first_eighth, "Q5_K"},

    {"IQ3_XS", Role::ffn_gate, Where::middle, "IQ3_XXS"},
    {"IQ3_XS", Role::ffn_up, Where::middle, "IQ3_XXS"},
});

bool holds(const ModelConfig& c, Where where, int layer) {
  const int layers = c.num_hidden_layers;
  // MLA has no KV heads to share: llama.cpp sees as many as there are query heads.
  const bool grouped = !c.is_mla() && c.num_attention_heads >= 4 * c.num_key_value_heads;
  switch (where) {
    case Where::everywhere:
      return true;
    case Where::first_two:
      return layer < 2;
    case Where::first_four:
      return layer < 4;
    case Where::first_sixteenth:
      return layer < layers / 16;
    case Where::first_eighth:
      return layer < layers / 8;
    case Where::middle:
      return layer >= layers / 8 && layer < 7 * layers / 8;
    case Where::more_bits:
      return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
    case Where::grouped:
      return grouped;
    case Where::grouped_or_moe:
      return grouped || c.n_routed_experts >= 4;
  }
  return false;
}

/// Unsloth's files of R1 (January 2025). What every one of them has in common was read off their headers as loaders
/// print them: 190 tensors of Q4_K, 116 of Q5_K (Q2_K_XL: Q4_K), 184 of Q6_K besides the experts. Of the experts,
/// UD-IQ1_S has 168 tensors of IQ1_S and 6 of IQ2_XXS, UD-Q2_K_XL 171 of Q2_K and 3 of Q3_K. For the two others the
/// publisher names only the bits of gate, up and down and the size of the file, which these types meet.
struct Dynamic {
  std::string_view name, gate_up, first_down, down;
  int first_layers;  // MoE layers whose down projection is `first_down`
  std::string_view shared_gate_up;
};
constexpr auto dynamics = std::to_array<Dynamic>({
    {"UD-IQ1_S", "IQ1_S", "IQ2_XXS", "IQ1_S", 6, "Q5_K"},
    {"UD-IQ1_M", "IQ1_M", "Q2_K", "IQ2_XS", 7, "Q5_K"},
    {"UD-IQ2_XXS", "IQ2_XXS", "Q2_K", "Q2_K", 0, "Q5_K"},
    {"UD-Q2_K_XL", "Q2_K", "Q3_K", "Q2_K", 3, "Q4_K"},
});

const Dynamic* find_dynamic(std::string_view mix) {
  const auto* d = std::find_if(dynamics.begin(), dynamics.end(), [&](const Dynamic& x) { return x.name == mix; });
  return d == dynamics.end() ? nullptr : d;
}

const Mix* find_mix(std::string_view name) {
  const auto* mix = std::find_if(mixes.begin(), mixes.end(), [&](const Mix& m) { return m.name == name; });
  return mix == mixes.end() ? nullptr : mix;
}

std::string_view dynamic_type(const ModelConfig& c, const Dynamic& mix, const ExpectedTensor& t, Role role) {
  if (t.part == Part::routed_experts) {
    if (role != Role::ffn_down) return mix.gate_up;
    return t.layer < c.first_k_dense_replace + mix.first_layers ? mix.first_down : mix.down;
  }
  if (t.part == Part::shared_experts && role != Role::ffn_down) return mix.shared_gate_up;
  if (role == Role::output || role == Role::ffn_down || role == Role::attn_v) return "Q6_K";
  return t.name.ends_with("kv_a_proj_with_mqa.weight") ? "Q6_K" : "Q4_K";
}

std::string_view standard_type(const ModelConfig& c, const Mix& mix, const ExpectedTensor& t, Role role) {
  if (mix.base == "F32" || mix.base == "F16" || mix.base == "BF16") return mix.base;
  if (role == Role::output || (role == Role::token_embd && c.tie_word_embeddings)) {
    if (mix.name.starts_with("IQ1") || mix.name.starts_with("IQ2") || mix.name == "IQ3_XXS") return "Q5_K";
    return mix.base == "Q8_0" ? "Q8_0" : "Q6_K";
  }
  std::string_view type = mix.base;
  for (const Rule& rule : rules) {
    if (rule.mix != mix.name || rule.role != role || !holds(c, rule.where, t.layer)) continue;
    type = rule.type;
    break;
  }
  // Llama 70B: eight query heads share a KV head, so better values cost little.
  const bool llama_70b =
      c.architecture == Architecture::llama && c.num_hidden_layers == 80 && holds(c, Where::grouped, 0);
  if (llama_70b && role == Role::attn_v && (type == "Q3_K" || type == "Q4_K")) return "Q5_K";
  return type;
}

}  // namespace

std::string_view fitting_gguf_type(std::string_view name, std::int64_t cols) {
  if (cols % weight_type(name).block_cols == 0) return name;
  std::string_view smaller = "IQ4_NL";
  if (name == "Q2_K" || name == "Q3_K" || name == "TQ1_0" || name == "TQ2_0") smaller = "Q4_0";
  if (name == "Q4_K") smaller = "Q5_0";
  if (name == "Q5_K") smaller = "Q5_1";
  if (name == "Q6_K") smaller = "Q8_0";
  return cols % weight_type(smaller).block_cols == 0 ? smaller : "F16";
}

GgufRole gguf_role(const ExpectedTensor& tensor) {
  const auto is = [&](std::string_view leaf) { return tensor.name.ends_with(leaf); };
  if (tensor.part == Part::embedding) return Role::token_embd;
  if (tensor.part == Part::head) return Role::output;
  if (is(".q_proj.weight")) return Role::attn_q;
  if (is(".k_proj.weight")) return Role::attn_k;
  if (is(".v_proj.weight") || is(".kv_b_proj.weight")) return Role::attn_v;
  if (is(".o_proj.weight")) return Role::attn_output;
  if (is(".gate_proj.weight")) return Role::ffn_gate;
  if (is(".up_proj.weight")) return Role::ffn_up;
  if (is(".down_proj.weight")) return Role::ffn_down;
  return Role::other;
}

bool is_gguf_mix(std::string_view name) { return find_mix(name) || find_dynamic(name); }

const WeightType& gguf_half_type(const ModelConfig& config, std::string_view mix, const ExpectedTensor& tensor,
                                 std::int64_t cols) {
  const Dynamic* dynamic = find_dynamic(mix);
  const std::string_view wanted = dynamic ? dynamic_type(config, *dynamic, tensor, gguf_role(tensor))
                                          : standard_type(config, *find_mix(mix), tensor, Role::other);
  return weight_type(fitting_gguf_type(wanted, cols));
}

const WeightType& gguf_type(const ModelConfig& config, std::string_view mix, const ExpectedTensor& tensor) {
  if (tensor.shape.size() < 2 || tensor.part == Part::router || tensor.part == Part::norms) return weight_type("F32");
  const GgufRole role = gguf_role(tensor);
  const Dynamic* dynamic = find_dynamic(mix);
  const std::string_view wanted =
      dynamic ? dynamic_type(config, *dynamic, tensor, role) : standard_type(config, *find_mix(mix), tensor, role);
  return weight_type(fitting_gguf_type(wanted, tensor.shape[1]));
}

}  // namespace shoal
