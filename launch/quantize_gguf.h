#pragma once
#include "launch/conversion.h"
#include "launch/quantize.h"
#include "planner/model_config.h"
#include "runtime/checkpoint.h"

namespace shoal {

/// Writes the model as one GGUF file, in the layout llama.cpp reads: experts stacked, Llama's query and key rows
/// reordered, kv_b_proj split and its key half transposed. MTP layers are left out. Returns the error by part.
std::map<std::string, StorageError> write_gguf(const ModelConfig& config, const Checkpoint& checkpoint,
                                               const QuantizeOptions& options);

/// What tells this conversion from others into the same place: how, and which files it reads, with sizes and times of
/// change. One line.
std::string job_of(const Checkpoint& checkpoint, const QuantizeOptions& options);

/// Writes it as a Hugging Face folder with FP8, INT8 or INT4 linear weights.
std::map<std::string, StorageError> write_folder(const ModelConfig& config, const Checkpoint& checkpoint,
                                                 const QuantizeOptions& options);

}  // namespace shoal
