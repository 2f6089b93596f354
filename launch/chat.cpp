#include "launch/chat.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>

namespace shoal {
namespace {

using Json = nlohmann::ordered_json;

Json new_conversation(const std::string& system) {
  Json messages = Json::array();
  if (!system.empty()) messages.push_back({{"role", "system"}, {"content", system}});
  return messages;
}

}  // namespace

int chat(Asker& asker, const std::string& system, StopSignals& signals) {
  signals.on_signal([&asker](int signal, int) {
    // A second one while an answer ends finds it interrupted already: then the program is to end.
    const bool stopped = signal == SIGINT && asker.interrupt();
    if (!stopped) StopSignals::end_process(signal);
  });
  const bool terminal = isatty(STDIN_FILENO);
  if (terminal) fmt::print(stderr, "Type a message; /new forgets the conversation, /exit or Ctrl-D ends.\n");
  Json messages = new_conversation(system);
  for (std::string line;;) {
    if (terminal) {
      std::fputs("\n> ", stdout);
      std::fflush(stdout);
    }
    if (!std::getline(std::cin, line) || line == "/exit") break;
    if (line == "/new") messages = new_conversation(system);
    if (line.empty() || line == "/new") continue;

    messages.push_back({{"role", "user"}, {"content", line}});
    try {
      const Answer answer = asker.answer(messages, true);
      fmt::print(stderr, "[{}]\n", describe(answer));
      // Without the thinking: the model is never shown what it thought before.
      messages.push_back({{"role", "assistant"}, {"content", answer.content}});
    } catch (const Error& error) {
      fmt::print(stderr, "{}; /new starts a new conversation\n", error.what());
      messages.erase(messages.size() - 1);
    }
  }
  return 0;
}

}  // namespace shoal
