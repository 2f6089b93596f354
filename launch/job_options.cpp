#include "launch/job_options.h"

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace shoal {

namespace {

/// An option that names one of these values. (CLI11's transformers put the values themselves into the help, and take
/// them too.)
template <class T>
CLI::Option* add_choice(CLI::App& app, const std::string& flag, const std::string& description,
                        const std::vector<std::pair<std::string, T>>& values, std::function<void(T)> take) {
  const auto chosen = [=](const std::string& name) {
    take(std::ranges::find(values, name, &std::pair<std::string, T>::first)->second);
  };
  return app.add_option_function<std::string>(flag, chosen, description)->check(CLI::IsMember(values));
}

}  // namespace

void add_job_options(CLI::App& app, JobOptions& options) {
  const std::string group = "Model and job";
  app.add_option("--model", options.model, "The model: a Hugging Face folder or a GGUF file")->required()->group(group);
  app.add_option(
         "--plan", options.plan,
         "Plan from 'shoal plan --json' (on every host): places experts, and sets context, step, KV cache and its "
         "type, computing type (fp8 stays with a plan in 16 bits) and --speculative (mtp must be planned)")
      ->check(not_empty())
      ->group(group);
  app.add_option("--max-model-len", options.max_model_len,
                 "Longest prompt and answer together, in tokens; 0: what the model and the memory allow")
      ->check(at_least(0))
      ->group(group);
  app.add_option("--max-num-seqs", options.max_num_seqs, "Answers that are generated at once on one rank")
      ->check(at_least(1))
      ->group(group);
  app.add_option("--max-batched-tokens", options.max_batched_tokens,
                 "Tokens of one rank in one step; 0: 512, on GPUs 2048")
      ->check(at_least(0))
      ->group(group);
  app.add_option(
         "--max-prefill-tokens", options.max_prefill_tokens,
         "Of these, prompt tokens while answers are generated: fewer keep answers smooth, more read prompts sooner; "
         "0: 256, on GPUs 512")
      ->check(at_least(0))
      ->group(group);
  app.add_option("--kv-cache-gb", options.kv_cache_gb, "GB of KV cache on each rank; 0: a share of the free memory")
      ->check(within(0, 1e6))
      ->group(group);
  app.add_option("--threads", options.threads, "Threads of each rank; 0: this host's cores shared by its ranks")
      ->check(within(0, most_threads))
      ->group(group);
  app.add_flag("--pin", options.pin,
               "Keep each thread on a core of its own, on a machine that does little else: some kernels put two on one")
      ->group(group);
  app.add_option("--device", options.device, "What computes: auto (a GPU where there is one), cpu, cuda")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->group(group);
  app.add_option(
         "--collectives", options.collectives,
         "What carries data between ranks: nccl (from GPU to GPU), mpi, ucx (RDMA where hosts have it; ranks of one "
         "host share memory, as with mpi), auto (nccl where each rank has a GPU of its own, else mpi)")
      ->check(CLI::IsMember({"auto", "mpi", "ucx", "nccl"}))
      ->group(group);
  app.add_option("--isa", options.isa, "CPU instructions: auto, portable, avx2, avxvnni, avx512bw, avx512, amx")
      ->group(group);
  add_choice<Compute>(
      app, "--compute",
      "Type of activations, KV cache and exchanged rows: f32, bf16, fp8 (on Hopper GPUs; the rest then in bf16). "
      "Activations of quantized weights are rounded to INT8, but with bf16 on GPUs those of INT4 to BF16",
      {{"f32", Compute::f32}, {"bf16", Compute::bf16}, {"fp8", Compute::fp8}},
      [&options](Compute type) { options.compute = type; })
      ->default_str("f32")
      ->group(group);
  add_choice<KvType>(app, "--kv-cache-dtype", "Type of the KV cache; without it as --compute says",
                     {{"f32", KvType::f32}, {"bf16", KvType::bf16}, {"fp8", KvType::fp8}, {"int8", KvType::int8}},
                     [&options](KvType type) { options.kv_cache_dtype = type; })
      ->group(group);
  app.add_option_function<std::string>(
         "--speculative", [&options](const std::string& how) { options.mtp = how == "mtp"; },
         "Guess tokens ahead and verify them: none, mtp (the model's own MTP layer). Answers stay the same")
      ->check(CLI::IsMember({"none", "mtp"}))
      ->default_str("none")
      ->group(group);
  app.add_option("--rebalance-steps", options.rebalance_steps,
                 "Every so many steps, look at how many tokens each expert got and move experts from ranks that carry "
                 "much to ranks that carry little. Answers stay the same; 0: never")
      ->check(at_least(0))
      ->group(group);
  app.add_flag("--quiet", options.quiet, "No progress while the model is loaded")->group(group);
}

}  // namespace shoal
