#include "launch/job_options.h"

#include <map>
#include <string>

namespace shoal {

CLI::Validator not_empty() {
  return CLI::Validator([](const std::string& value) { return value.empty() ? "must not be empty" : std::string(); },
                        "");
}

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
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  app.add_option("--max-num-seqs", options.max_num_seqs, "Answers that are generated at once on one rank")
      ->check(CLI::PositiveNumber)
      ->group(group);
  app.add_option("--max-batched-tokens", options.max_batched_tokens,
                 "Tokens of one rank in one step; 0: 512, on GPUs 2048")
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  app.add_option(
         "--max-prefill-tokens", options.max_prefill_tokens,
         "Of these, prompt tokens while answers are generated: fewer keep answers smooth, more read prompts sooner; "
         "0: 256, on GPUs 512")
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  app.add_option("--kv-cache-gb", options.kv_cache_gb, "GB of KV cache on each rank; 0: a share of the free memory")
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  app.add_option("--threads", options.threads, "Threads of each rank; 0: this host's cores shared by its ranks")
      ->check(CLI::NonNegativeNumber)
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
  const std::map<std::string, Compute> types = {{"f32", Compute::f32}, {"bf16", Compute::bf16}, {"fp8", Compute::fp8}};
  app.add_option(
         "--compute", options.compute,
         "Type of activations, KV cache and exchanged rows: f32, bf16, fp8 (on Hopper GPUs; the rest then in bf16). "
         "Activations of quantized weights are rounded to INT8, but with bf16 on GPUs those of INT4 to BF16")
      ->transform(CLI::CheckedTransformer(types))
      ->type_name("TYPE")
      ->default_str("f32")
      ->group(group);
  const std::map<std::string, KvType> kv_types = {
      {"f32", KvType::f32}, {"bf16", KvType::bf16}, {"fp8", KvType::fp8}, {"int8", KvType::int8}};
  app.add_option("--kv-cache-dtype", options.kv_cache_dtype,
                 "Type of the KV cache: f32, bf16, fp8, int8; without it as --compute says")
      ->transform(CLI::CheckedTransformer(kv_types))
      ->type_name("TYPE")
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
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  app.add_flag("--quiet", options.quiet, "No progress while the model is loaded")->group(group);
}

}  // namespace shoal
