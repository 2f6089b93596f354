#pragma once
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>

#include "launch/http_exchange.h"

namespace shoal {

/// An answer that is an error, as OpenAI's clients expect it.
struct ApiError : std::runtime_error {
  int status;
  std::string param;  // the field at fault; may be empty
  std::string code;   // for programs: "model_not_found"; may be empty
  HttpHeaders headers;

  ApiError(int http_status, const std::string& message, std::string field = {}, std::string error_code = {},
           HttpHeaders extra_headers = {})
      : std::runtime_error(message),
        status(http_status),
        param(std::move(field)),
        code(std::move(error_code)),
        headers(std::move(extra_headers)) {}
};

/// Status 400, with the name of the field at fault.
inline ApiError bad_field(const std::string& field, const std::string& message) {
  return {400, message, field, "invalid_value"};
}

/// {"error": {"message", "type", "param", "code"}}.
nlohmann::ordered_json error_object(const ApiError& error);

/// JSON as bytes that are valid UTF-8 whatever the strings in it are.
std::string to_text(const nlohmann::ordered_json& json);

}  // namespace shoal
