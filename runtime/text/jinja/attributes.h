#pragma once
#include <optional>
#include <string>
#include <string_view>

#include "runtime/text/jinja/context.h"
#include "runtime/text/jinja/value.h"

namespace shoal::jinja {

/// What Python's getattr(on, name) finds, a method or attribute; none where it finds nothing.
std::optional<Value> find_attribute(Context& context, const Value& on, std::string_view name);

/// on.name: a method or attribute, else an entry of a dict, else undefined.
Value get_attribute(Context& context, const Value& on, std::string_view name);

/// on[key]: an entry or item, else an attribute, else undefined.
Value get_item(Context& context, const Value& on, const Value& key);

/// on[start:stop:step]; none for what is not given.
Value get_slice(Context& context, const Value& on, const Value& start, const Value& stop, const Value& step);

/// The place of item `index` among `size`, negative ones counted from the end; none where there is no such item.
std::optional<size_t> item_place(int64_t index, size_t size);

/// on(args).
Value call(Context& context, const Value& on, const Args& args);

/// on.name(args).
Value call_method(Context& context, const Value& on, std::string_view name, const Args& args);

}  // namespace shoal::jinja
