#pragma once
#include "runtime/text/jinja/context.h"

namespace shoal::jinja {

/// Puts the functions that every template can call (range, namespace, raise_exception, ...) into `scope`.
void add_functions(Scope& scope);

}  // namespace shoal::jinja
