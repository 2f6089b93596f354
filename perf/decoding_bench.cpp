// What the options that trade exactness or work for speed and memory do to a model:
//
//   decoding_bench guesses MODEL    tokens a step and tokens/s with MTP guesses and without, greedy and drawn
//   decoding_bench kv MODEL         each KV cache type: bytes a token, KL divergence of its predictions from the FP32
//   cache's decoding_bench long MODEL N     a prompt of N random tokens: time of each part, memory, and whether all
//   stays finite
//
// `guesses` and `kv` ask the model the first problems of its puzzles.jsonl. One rank.
#include <fmt/format.h>

#include <chrono>
#include <cmath>
#include <fstream>
#include <map>
#include <random>

#include "base/error.h"
#include "collectives/communicator.h"
#include "runtime/sampler.h"
#include "runtime/scheduler.h"
#include "runtime/text/chat_template.h"
#include "runtime/text/tokenizer.h"
#include "runtime/worker.h"

namespace shoal {
namespace {

constexpr int kPageTokens = 16;

struct Engine {
  ModelConfig config;
  std::unique_ptr<Communicator> comm = make_self_communicator();
  Placement placement;
  std::unique_ptr<Backend> backend = make_cpu_backend({});
  KvCache cache;
  Model model;
  Worker worker;

  Engine(const std::filesystem::path& dir, KvType type, bool mtp, int pages)
      : config(ModelConfig::from_file(dir)),
        placement(place_evenly(config, 1)),
        cache(*backend, config.num_hidden_layers + mtp, pages, kPageTokens, config.kv_width(), type),
        model(config, load_weights(config, Checkpoint::open(dir), placement, 0, {.mtp = mtp}), placement, *backend,
              *comm, cache, false),
        worker(model, *backend, cache, 32, true, nullptr) {}
};

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::vector<std::vector<std::int32_t>> puzzles(const std::filesystem::path& dir, std::size_t count) {
  const Tokenizer tokenizer = Tokenizer::from_model_dir(dir);
  const auto chat = ChatTemplate::from_model_dir(dir);
  if (!chat) fail("{} has no chat template, so there is nothing to ask it", dir.string());
  std::vector<std::vector<std::int32_t>> prompts;
  std::ifstream file(dir / "puzzles.jsonl");
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  for (std::size_t i = 0; i < std::min(count, lines.size()); ++i) {
    const auto problem = nlohmann::json::parse(lines[i * lines.size() / count]);  // of every kind
    ChatTemplate::Json messages = ChatTemplate::Json::array();
    messages.push_back({{"role", "user"}, {"content", problem.at("prompt").get<std::string>()}});
    prompts.push_back(tokenizer.encode(chat->render(messages, nullptr, true), false));
  }
  return prompts;
}

struct Served {
  std::vector<std::vector<std::int32_t>> answers;
  Scheduler::Totals totals;
  double seconds = 0;
};

/// Answers all prompts, `at_once` of them side by side.
Served serve(Engine& engine, const std::vector<std::vector<std::int32_t>>& prompts, float temperature, int at_once) {
  CoordinatorOptions options;
  options.kv_pages = {engine.cache.pages()};
  options.page_tokens = kPageTokens;
  options.max_num_seqs = at_once;
  Scheduler scheduler(options);
  Served served;
  served.answers.resize(prompts.size());
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    GenerationRequest request;
    request.prompt = prompts[i];
    request.max_tokens = 160;
    request.stop_token_ids = engine.config.eos_token_ids;
    request.sampling.temperature = temperature;
    request.sampling.seed = i;
    scheduler.submit(i, std::move(request));
  }
  const auto start = Clock::now();
  while (scheduler.has_work()) {
    for (const auto& [id, event] : scheduler.apply(0, engine.worker.run(scheduler.plan().at(0))))
      if (event.token >= 0) served.answers[id].push_back(event.token);
  }
  served.seconds = seconds_since(start);
  served.totals = scheduler.totals();
  return served;
}

int guesses(const std::filesystem::path& dir) {
  const auto prompts = puzzles(dir, 64);
  Engine plain(dir, KvType::f32, false, 4000), guessing(dir, KvType::f32, true, 4000);
  fmt::print("{:>11} {:>8} {:>9} {:>12} {:>12} {:>8} {:>5}\n", "temperature", "at once", "accepted", "plain tok/s",
             "mtp tok/s", "speed-up", "same");
  for (const float temperature : {0.0f, 0.6f, 1.0f}) {
    for (const int at_once : {1, 8}) {
      const Served a = serve(plain, prompts, temperature, at_once), b = serve(guessing, prompts, temperature, at_once);
      const auto rate = [](const Served& s) { return static_cast<double>(s.totals.generated_tokens) / s.seconds; };
      fmt::print("{:>11} {:>8} {:>8.1f}% {:>12.1f} {:>12.1f} {:>8.2f} {:>5}\n", temperature, at_once,
                 100.0 * static_cast<double>(b.totals.accepted) / static_cast<double>(b.totals.drafted), rate(a),
                 rate(b), rate(b) / rate(a), a.answers == b.answers ? "yes" : "NO");
      std::fflush(stdout);
    }
  }
  return 0;
}

/// Log-probabilities [tokens, vocab] of what follows each token.
std::vector<float> predictions(Engine& engine, const std::vector<std::int32_t>& ids) {
  std::vector<std::int32_t> pages;
  for (std::int32_t i = 0; i * kPageTokens < std::ssize(ids); ++i) pages.push_back(i);
  TokenBatch batch;
  std::vector<std::int64_t> rows;
  for (std::int32_t i = 0; i < std::ssize(ids); ++i) {
    batch.ids.push_back(ids[static_cast<std::size_t>(i)]);
    batch.positions.push_back(i);
    batch.slots.push_back(engine.cache.slot(pages, i));
    batch.queries.push_back({pages.data(), i + 1});
    rows.push_back(i);
  }
  engine.model.forward(batch);
  const Rows<const float> logits = engine.model.logits(rows);
  std::vector<float> all;
  for (std::int64_t t = 0; t < logits.rows; ++t) {
    double sum = 0;
    const float most = *std::max_element(logits[t], logits[t] + logits.cols);
    for (std::int64_t i = 0; i < logits.cols; ++i) sum += std::exp(static_cast<double>(logits[t][i] - most));
    const float log_sum = most + static_cast<float>(std::log(sum));
    for (std::int64_t i = 0; i < logits.cols; ++i) all.push_back(logits[t][i] - log_sum);
  }
  return all;
}

int kv(const std::filesystem::path& dir) {
  Engine exact(dir, KvType::f32, false, 2000);
  const auto prompts = puzzles(dir, 64);
  auto texts = prompts;
  const Served answered = serve(exact, prompts, 0, 8);
  for (std::size_t i = 0; i < texts.size(); ++i)
    texts[i].insert(texts[i].end(), answered.answers[i].begin(), answered.answers[i].end());
  fmt::print("{:>5} {:>12} {:>12} {:>12} {:>12} {:>13}\n", "type", "bytes/token", "mean KL", "largest KL",
             "same choice", "same answers");
  for (const KvType type : {KvType::f32, KvType::bf16, KvType::int8, KvType::fp8}) {
    Engine engine(dir, type, false, 2000);
    const auto vocab = static_cast<std::size_t>(engine.config.vocab_size);
    double sum = 0, worst = 0;
    std::size_t positions = 0, same = 0;
    for (std::size_t text = 0; text < texts.size(); ++text) {
      const auto p = predictions(exact, texts[text]), q = predictions(engine, texts[text]);
      // Where the answer's tokens are chosen: a prompt's own are any, and nothing was trained to follow the end.
      const std::size_t first = (prompts[text].size() - 1) * vocab, last = p.size() - vocab;
      for (std::size_t at = first; at < last; at += vocab, ++positions) {
        double kl = 0;
        for (std::size_t i = at; i < at + vocab; ++i) kl += std::exp(p[i]) * static_cast<double>(p[i] - q[i]);
        sum += kl;
        worst = std::max(worst, kl);
        const auto choice = [&](const auto& v) {
          const auto from = v.begin() + static_cast<std::ptrdiff_t>(at);
          return std::max_element(from, from + static_cast<std::ptrdiff_t>(vocab)) - from;
        };
        same += choice(p) == choice(q);
      }
    }
    const Served again = serve(engine, prompts, 0, 8);
    std::size_t alike = 0;
    for (std::size_t i = 0; i < texts.size(); ++i) alike += again.answers[i] == answered.answers[i];
    fmt::print("{:>5} {:>12} {:>12.2e} {:>12.2e} {:>11.2f}% {:>10}/{}\n", name_of(type),
               kv_row_bytes(type, engine.config.kv_width()) * engine.config.num_hidden_layers,
               sum / static_cast<double>(positions), worst,
               100.0 * static_cast<double>(same) / static_cast<double>(positions), alike, texts.size());
    std::fflush(stdout);
  }
  return 0;
}

double resident_mb() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind("VmRSS:", 0) == 0) return std::stod(line.substr(6)) / 1000;
  return 0;
}

int long_context(const std::filesystem::path& dir, int tokens) {
  const int pages = tokens / kPageTokens + 2;
  Engine engine(dir, KvType::bf16, false, pages);
  fmt::print("KV cache of {:.1f} MB for {} tokens; resident {:.1f} MB\n",
             static_cast<double>(engine.cache.bytes()) / 1e6, pages * kPageTokens, resident_mb());
  CoordinatorOptions options;
  options.kv_pages = {pages};
  options.page_tokens = kPageTokens;
  Scheduler scheduler(options);
  std::mt19937 random(1);
  GenerationRequest request;
  for (int i = 0; i < tokens; ++i)
    request.prompt.push_back(2 +
                             static_cast<std::int32_t>(random() % static_cast<unsigned>(engine.config.vocab_size - 2)));
  request.max_tokens = 16;
  request.sampling.temperature = 0;
  request.logprobs = 0;
  scheduler.submit(1, std::move(request));
  const auto start = Clock::now();
  int next_report = 2048, answered = 0;
  while (scheduler.has_work()) {
    const auto plan = scheduler.plan().at(0);
    for (const auto& [id, event] : scheduler.apply(0, engine.worker.run(plan))) {
      for (const TokenLogprob& entry : event.logprob) {
        if (!std::isfinite(entry.logprob)) return fmt::print("token {} has no finite probability\n", answered), 1;
        ++answered;
      }
    }
    const SequenceChunk& chunk = plan.chunks.at(0);
    if (chunk.position + std::ssize(chunk.tokens) < next_report && scheduler.has_work()) continue;
    fmt::print("{:>7} tokens after {:>7.1f} s, resident {:.1f} MB\n", chunk.position + std::ssize(chunk.tokens),
               seconds_since(start), resident_mb());
    std::fflush(stdout);
    next_report *= 2;
  }
  fmt::print("{} tokens answered, all finite\n", answered);
  return answered == 16 ? 0 : 1;
}

int run(int argc, char** argv) {
  const std::string what = argc > 2 ? argv[1] : "";
  if (what == "guesses") return guesses(argv[2]);
  if (what == "kv") return kv(argv[2]);
  if (what == "long" && argc > 3) return long_context(argv[2], std::stoi(argv[3]));
  fmt::print(stderr, "usage: decoding_bench guesses|kv MODEL, or long MODEL TOKENS\n");
  return 2;
}

}  // namespace
}  // namespace shoal

int main(int argc, char** argv) {
  try {
    return shoal::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "decoding_bench: {}\n", error.what());
    return 1;
  }
}
