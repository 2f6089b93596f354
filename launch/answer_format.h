#pragma once
#include <string>

#include "launch/request_fields.h"

namespace shoal {

/// The form that an answer must have, as a grammar in GBNF; empty: any. Read from OpenAI's `response_format`,
/// llama.cpp's `grammar` and `json_schema`, vLLM's `structured_outputs` and `guided_json`, `guided_regex`,
/// `guided_choice`, `guided_grammar`. Throws ApiError 400 where a form is none, is not supported, or is given twice.
std::string read_answer_format(RequestFields& fields);

}  // namespace shoal
