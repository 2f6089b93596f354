#pragma once
#include <string>

#include "planner/model_config.h"
#include "runtime/checkpoint.h"

/// A model of real shape with weights that mean nothing, for measuring speed where one has no weights. Values do not
/// change how fast a layer computes; which experts are chosen does, and random routers spread tokens over all experts.
namespace shoal {

/// What `model` (a bundled card, a folder or a config.json) says, with its first `layers` layers only (0: all) and
/// weights stored as `precision` says (planner/precision.h). Error (wrong usage) where it cannot be made up so.
ModelConfig random_model_config(const std::string& model, const std::string& precision, int layers);

/// Its tensors: weights of a normal distribution around 0 (deviation 0.02), norms of 1. Repeatable; the bytes are made
/// when they are read. Memory: a few MB.
Checkpoint random_checkpoint(const ModelConfig& config, const std::string& precision);

}  // namespace shoal
