// libFuzzer target: whatever bytes a client sends, the server answers, refuses or closes, and serves the next one. An
// input that begins with a digit is a body for one of the API's paths; any other is sent as it is. Answers are made of
// the prompt's tokens, so that no model is needed. Run it in the repository.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>
#include <string_view>

#include "launch/http_server.h"
#include "launch/openai_api.h"

namespace {

using namespace shoal;

/// Says the prompt's tokens again, at most as many as wanted.
std::uint64_t echo(const GenerationRequest& request, const EventSink& sink) {
  const int count = std::min<int>(request.max_tokens, 8);
  for (int i = 0; i < count; ++i) {
    GenerationEvent event;
    event.token = request.prompt[static_cast<std::size_t>(i) % request.prompt.size()];
    if (request.logprobs >= 0) event.logprob.resize(1);
    if (i + 1 == count) event.finish = FinishReason::length;
    sink(event);
  }
  if (count == 0) {
    GenerationEvent event;
    event.finish = FinishReason::length;
    sink(event);
  }
  return 1;
}

ServedModel demo() {
  ServedModel model;
  model.names = {"m"};
  model.family = "deepseek_v3";
  model.max_model_len = 512;
  model.tokenizer = std::make_shared<const Tokenizer>(Tokenizer::from_model_dir("launch/demo-model"));
  model.vocab_size = model.tokenizer->vocab_size();
  model.eos_token_ids = {1};
  model.render_chat = [](const ServedModel::Json& messages, const ServedModel::Json*, const ServedModel::Json&) {
    return messages.dump(-1, ' ', false, ServedModel::Json::error_handler_t::replace) + "<think>\n";
  };
  return model;
}

struct Server {
  ServedModel model = demo();
  GenerationService service{{echo, [](std::uint64_t) {}}, model.tokenizer};
  OpenAiApi api{model, service, {}, nullptr};
  HttpServer http{options(), [this](HttpRequest request, Responder responder) {
                    api.handle(std::move(request), std::move(responder));
                  }};

  static HttpServerOptions options() {
    HttpServerOptions options;
    options.error_body = http_error_body;
    return options;
  }
};

/// All that the server says to these bytes.
std::string talk(std::uint16_t port, std::string_view bytes) {
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  // A reset, so that a million connections leave none waiting for its end.
  const linger at_once{1, 0};
  ::setsockopt(socket, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  if (::connect(socket, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    if (errno != EINTR) std::abort();
    ::close(socket);  // libFuzzer's alarm, which looks whether an input takes too long
    return {};
  }
  while (!bytes.empty()) {
    const auto sent = ::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) break;
    bytes.remove_prefix(static_cast<std::size_t>(sent));
  }
  ::shutdown(socket, SHUT_WR);
  std::string answer;
  char buffer[4096];
  for (ssize_t got; (got = ::recv(socket, buffer, sizeof buffer, 0)) > 0;)
    answer.append(buffer, static_cast<std::size_t>(got));
  ::close(socket);
  return answer;
}

std::string post(std::string_view path, std::string_view body) {
  return "POST " + std::string(path) + " HTTP/1.1\r\nHost: f\r\nContent-Length: " + std::to_string(body.size()) +
         "\r\nConnection: close\r\n\r\n" + std::string(body);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static Server& server = *new Server;  // its threads live as long as the process
  static constexpr std::string_view paths[] = {"/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize",
                                               "/api/chat",       "/api/generate",        "/api/show"};
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const bool body = !input.empty() && input[0] >= '0' && input[0] < '0' + static_cast<char>(std::size(paths));
  const std::string answer =
      talk(server.http.port(),
           body ? post(paths[static_cast<std::size_t>(input[0] - '0')], input.substr(1)) : std::string(input));
  if (!answer.empty() && !answer.starts_with("HTTP/1.")) std::abort();
  // The server's own faults are 500; what came from a client never is one.
  if (answer.starts_with("HTTP/1.1 500")) std::abort();
  return 0;
}
