#pragma once
#include "planner/model_config.h"
#include "runtime/gguf.h"

namespace shoal {

/// What a GGUF's metadata say of the model, in ModelConfig's terms, for the architectures deepseek2 (V2, V3, R1),
/// llama, qwen2 and qwen3. Everything is checked; Error names file and key.
ModelConfig gguf_model_config(const Gguf& gguf);

}  // namespace shoal
