#include "launch/http_server.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <mutex>
#include <optional>
#include <thread>

#include "base/error.h"
#include "tests/unit/raw_http_client.h"
#include "tests/unit/scratch_folder.h"

namespace shoal {
namespace {

using namespace std::chrono_literals;
using test::HttpAnswer;
using test::RawHttpClient;

/// Says what it was asked.
void echo(const HttpRequest& request, const Responder& responder) {
  responder.send(200, "text/plain", request.method + " " + request.path + "?" + request.query + " " + request.body,
                 {{"X-Test", "yes"}});
}

/// Gives the handler's responder to the test.
struct Catcher {
  std::promise<Responder> promise;
  HttpServer::Handler handler() {
    return [this](const HttpRequest&, Responder responder) { promise.set_value(std::move(responder)); };
  }
  Responder wait() { return promise.get_future().get(); }
};

TEST(HttpServer, AnswersOneRequestAfterAnotherOnAConnection) {
  HttpServer server({}, echo);
  RawHttpClient client(server.port());
  for (int i = 0; i < 3; ++i) {
    client.request("POST", "/a%20b?c=d", "body");
    const HttpAnswer answer = client.read_answer();
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.body, "POST /a%20b?c=d body");
    EXPECT_PRED2(contains, answer.head, "X-Test: yes");
    EXPECT_PRED2(contains, answer.head, "Date: ");
  }
}

TEST(HttpServer, AnswersPipelinedRequestsInOrder) {
  HttpServer server({}, echo);
  RawHttpClient client(server.port());
  std::string all;
  for (int i = 0; i < 50; ++i) all += "GET /" + std::to_string(i) + " HTTP/1.1\r\nHost: t\r\n\r\n";
  client.send(all);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(client.read_answer().body, "GET /" + std::to_string(i) + "? ");
}

TEST(HttpServer, ReadsRequestsThatComeInPieces) {
  HttpServer server({}, echo);
  RawHttpClient client(server.port());
  for (const char c : std::string("POST /p HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc")) {
    client.send({&c, 1});
    std::this_thread::sleep_for(1ms);
  }
  EXPECT_EQ(client.read_answer().body, "POST /p? abc");
}

TEST(HttpServer, FindsHeadersInAnyCase) {
  HttpServer server({}, [](const HttpRequest& request, const Responder& responder) {
    responder.send(200, "text/plain", std::string(request.header("AUTHORIZATION")));
  });
  RawHttpClient client(server.port());
  client.request("GET", "/", {}, "authorization: Bearer x\r\n");
  EXPECT_EQ(client.read_answer().body, "Bearer x");
}

TEST(HttpServer, HeadHasNoBody) {
  HttpServer server({}, echo);
  RawHttpClient client(server.port());
  client.request("HEAD", "/x");
  EXPECT_PRED2(contains, client.read_answer(true).head, "Content-Length: 9");
  client.request("GET", "/y");
  EXPECT_EQ(client.read_answer().body, "GET /y? ");
}

TEST(HttpServer, OldAndOneTimeClientsAreClosed) {
  HttpServer server({}, echo);
  RawHttpClient old(server.port()), once(server.port());
  old.send("GET / HTTP/1.0\r\n\r\n");
  EXPECT_EQ(old.read_answer().body, "GET /? ");
  EXPECT_TRUE(old.closes());
  once.request("GET", "/", {}, "Connection: close\r\n");
  EXPECT_EQ(once.read_answer().body, "GET /? ");
  EXPECT_TRUE(once.closes());
}

TEST(HttpServer, SaysGoOnToClientsThatWaitForIt) {
  HttpServer server({}, echo);
  RawHttpClient client(server.port());
  client.send("POST / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_PRED2(contains, client.read_until("\r\n\r\n"), "100 Continue");
  client.send("ok");
  EXPECT_EQ(client.read_answer().body, "POST /? ok");
}

TEST(HttpServer, RefusesLargeBodiesEvenWhileTheyAreSent) {
  HttpServerOptions options;
  options.max_body_bytes = 1000;
  options.error_body = [](int status, const std::string& message) { return std::to_string(status) + message; };
  HttpServer server(options, echo);
  for (const std::size_t size : {1001u, 8000000u}) {
    RawHttpClient client(server.port());
    client.request("POST", "/", std::string(size, 'x'));
    const HttpAnswer answer = client.read_answer();
    EXPECT_EQ(answer.status, 413);
    EXPECT_PRED2(contains, answer.body, "413the request's body is larger than 1000 bytes");
  }
  RawHttpClient chunked(server.port());
  chunked.send("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n800\r\n" + std::string(0x800, 'x') + "\r\n");
  EXPECT_EQ(chunked.read_answer().status, 413);
  RawHttpClient fits(server.port());
  fits.request("POST", "/", std::string(1000, 'x'));
  EXPECT_EQ(fits.read_answer().status, 200);
}

TEST(HttpServer, RefusesLargeHeadersAndWhatIsNoHttp) {
  HttpServer server({}, echo);
  RawHttpClient large(server.port()), nonsense(server.port());
  large.request("GET", "/", {}, "X: " + std::string(100000, 'x') + "\r\n");
  EXPECT_EQ(large.read_answer().status, 431);
  nonsense.send("\x16\x03\x01 this is TLS, maybe\r\n\r\n");
  EXPECT_EQ(nonsense.read_answer().status, 400);
  EXPECT_TRUE(nonsense.closes());
}

TEST(HttpServer, DropsClientsThatDoNotFinishARequest) {
  HttpServerOptions options;
  options.read_timeout = 200ms;
  HttpServer server(options, echo);
  RawHttpClient headers(server.port()), body(server.port());
  headers.send("GET / HTTP/1.1\r\nHost:");
  body.send("POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc");
  EXPECT_TRUE(headers.closes(5s));
  EXPECT_TRUE(body.closes(5s));
}

TEST(HttpServer, DropsIdleConnections) {
  HttpServerOptions options;
  options.idle_timeout = 200ms;
  HttpServer server(options, echo);
  RawHttpClient silent(server.port()), used(server.port());
  used.request("GET", "/");
  EXPECT_EQ(used.read_answer().status, 200);
  EXPECT_TRUE(silent.closes(5s));
  EXPECT_TRUE(used.closes(5s));
}

TEST(HttpServer, StreamsAsItIsWritten) {
  Catcher catcher;
  HttpServer server({}, catcher.handler());
  RawHttpClient client(server.port());
  client.request("GET", "/");
  const Responder responder = catcher.wait();
  responder.begin_stream(200, "text/event-stream");
  EXPECT_PRED2(contains, client.read_until("\r\n\r\n"), "Transfer-Encoding: chunked");
  for (const std::string text : {"one", "two", "three"}) {
    EXPECT_TRUE(responder.write(text));
    EXPECT_EQ(client.read_chunk(), text);
  }
  responder.end();
  EXPECT_EQ(client.read_chunk(), "");
  EXPECT_FALSE(responder.write("late"));
}

TEST(HttpServer, StreamsToOldClientsUntilItCloses) {
  HttpServer server({}, [](const HttpRequest&, const Responder& responder) {
    responder.begin_stream(200, "text/plain");
    responder.write("a");
    responder.write("b");
    responder.end();
  });
  RawHttpClient client(server.port());
  client.send("GET / HTTP/1.0\r\n\r\n");
  const std::string all = client.read_all();
  EXPECT_FALSE(contains(all, "chunked"));
  EXPECT_PRED2(contains, all, "\r\n\r\nab");
}

TEST(HttpServer, ConnectionServesOnAfterAStream) {
  HttpServer server({}, [](const HttpRequest& request, const Responder& responder) {
    if (request.path == "/whole") return responder.send(200, "text/plain", "whole");
    responder.begin_stream(200, "text/plain");
    responder.write("part");
    responder.end();
  });
  RawHttpClient client(server.port());
  client.request("GET", "/stream");
  client.request("GET", "/whole");
  client.request("GET", "/stream");
  EXPECT_EQ(client.read_answer().body, "part");
  EXPECT_EQ(client.read_answer().body, "whole");
  EXPECT_EQ(client.read_answer().body, "part");
}

TEST(HttpServer, TellsThatAClientLeftAStream) {
  Catcher catcher;
  HttpServer server({}, catcher.handler());
  RawHttpClient client(server.port());
  client.request("GET", "/");
  const Responder responder = catcher.wait();
  std::promise<void> gone;
  responder.on_disconnect([&] { gone.set_value(); });
  responder.begin_stream(200, "text/plain");
  responder.write("something");
  client.read_until("something");
  client.close();
  EXPECT_EQ(gone.get_future().wait_for(10s), std::future_status::ready);
  EXPECT_FALSE(responder.write("more"));
}

TEST(HttpServer, TellsThatAClientDidNotWaitForItsAnswer) {
  Catcher catcher;
  HttpServer server({}, catcher.handler());
  auto client = std::make_optional<RawHttpClient>(server.port());
  client->request("GET", "/");
  const Responder responder = catcher.wait();
  client.reset();
  std::promise<void> gone;  // set before or after it went
  responder.on_disconnect([&] { gone.set_value(); });
  EXPECT_EQ(gone.get_future().wait_for(10s), std::future_status::ready);
  responder.send(200, "text/plain", "late");
}

TEST(HttpServer, AConnectionEndsWhenItsClientLeavesBeforeTheAnswer) {
  Catcher catcher;
  HttpServer server({}, catcher.handler());
  auto client = std::make_optional<RawHttpClient>(server.port());
  client->request("GET", "/");
  std::optional<Responder> responder = catcher.wait();
  std::promise<void> gone;
  responder->on_disconnect([&] { gone.set_value(); });
  client.reset();
  ASSERT_EQ(gone.get_future().wait_for(10s), std::future_status::ready);
  std::this_thread::sleep_for(50ms);  // the connection has seen that there is nothing to write
  responder.reset();
  EXPECT_TRUE(server.drain(5s)) << "the connection stayed for ever";
}

TEST(HttpServer, AConnectionEndsWhenItsClientStopsWithinARequest) {
  HttpServer server({}, echo);
  const std::string request = "GET /end HTTP/1.1\r\nHost: h\r\n\r\n";
  for (std::size_t sent = 1; sent < request.size(); ++sent) {
    RawHttpClient client(server.port());
    client.send(request.substr(0, sent));
    client.finish();
    EXPECT_TRUE(client.closes(5s)) << "after " << sent << " bytes";
  }
}

TEST(HttpServer, SaysNothingOfClientsThatGoAfterTheirAnswer) {
  std::atomic<int> gone = 0;
  HttpServer server({}, [&](const HttpRequest& request, const Responder& responder) {
    responder.on_disconnect([&] { ++gone; });
    echo(request, responder);
  });
  for (int i = 0; i < 10; ++i) {
    RawHttpClient client(server.port());
    client.request("GET", "/");
    EXPECT_EQ(client.read_answer().status, 200);
  }
  server.stop();
  EXPECT_EQ(gone, 0);
}

TEST(HttpServer, DropsAClientThatDoesNotReadItsStream) {
  HttpServerOptions options;
  options.max_queued_bytes = 100000;
  Catcher catcher;
  HttpServer server(options, catcher.handler());
  RawHttpClient client(server.port(), 4096);
  client.request("GET", "/");
  const Responder responder = catcher.wait();
  std::promise<void> gone;
  responder.on_disconnect([&] { gone.set_value(); });
  responder.begin_stream(200, "text/plain");
  bool open = true;
  // The system's own buffers take some megabytes at most.
  for (int i = 0; i < 10000 && open; ++i) {
    open = responder.write(std::string(50000, 'x'));
    std::this_thread::sleep_for(1ms);
  }
  EXPECT_FALSE(open);
  EXPECT_EQ(gone.get_future().wait_for(10s), std::future_status::ready);
}

TEST(HttpServer, AChunkMayBeLargerThanTheQueue) {
  Catcher catcher;
  HttpServerOptions options;
  options.max_queued_bytes = 1000;
  HttpServer server(options, catcher.handler());
  RawHttpClient client(server.port());
  client.request("GET", "/");
  const Responder responder = catcher.wait();
  responder.begin_stream(200, "text/plain");
  EXPECT_TRUE(responder.write(std::string(100'000, 'a')));
  responder.end();
  EXPECT_EQ(client.read_answer().body, std::string(100'000, 'a'));
}

TEST(HttpServer, ASilentStreamShowsThatItLives) {
  Catcher catcher;
  HttpServerOptions options;
  options.keep_alive_interval = 20ms;
  HttpServer server(options, catcher.handler());
  RawHttpClient client(server.port());
  client.request("GET", "/");
  const Responder responder = catcher.wait();
  responder.begin_stream(200, "text/event-stream", {}, ": alive\n\n");
  std::this_thread::sleep_for(200ms);
  responder.write("data: 1\n\n");
  responder.end();
  const std::string body = client.read_answer().body;
  EXPECT_TRUE(body.starts_with(": alive\n\n: alive\n\n")) << body;
  EXPECT_TRUE(body.ends_with(": alive\n\ndata: 1\n\n")) << body;
}

TEST(HttpServer, AnswersByTheHeadBeforeABodyIsSent) {
  HttpServerOptions options;
  options.answer_head = [](const HttpRequest& head, const Responder& responder) {
    if (!head.header("X-Key").empty()) return false;
    responder.send(401, "text/plain", "no key");
    return true;
  };
  HttpServer server(options, echo);
  RawHttpClient stranger(server.port());
  stranger.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 30000000\r\nExpect: 100-continue\r\n\r\n");
  const HttpAnswer refused = stranger.read_answer();
  EXPECT_EQ(refused.status, 401);
  EXPECT_EQ(refused.body, "no key");
  EXPECT_PRED2(contains, refused.head, "Connection: close");
  RawHttpClient known(server.port());
  known.send("POST /a HTTP/1.1\r\nHost: t\r\nX-Key: k\r\nContent-Length: 4\r\n\r\nbody");
  EXPECT_EQ(known.read_answer().body, "POST /a? body");
}

TEST(HttpServer, AllBodiesTogetherHaveARoom) {
  HttpServerOptions options;
  options.max_all_bodies_bytes = 150'000;
  HttpServer server(options, echo);
  const std::string body(100'000, 'b');
  for (int round = 0; round < 3; ++round) {  // what was read is given back
    RawHttpClient first(server.port()), second(server.port());
    first.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 100001\r\n\r\n" + body);
    std::this_thread::sleep_for(500ms);
    second.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 100000\r\n\r\n" + body);
    EXPECT_EQ(second.read_answer().status, 503);
    first.send("b");
    EXPECT_EQ(first.read_answer().status, 200);
    int status = 503;  // until the handler's thread has let go of the first body, just after its answer
    for (int i = 0; i < 100 && status == 503; ++i) {
      RawHttpClient third(server.port());
      third.send("POST / HTTP/1.1\r\nHost: t\r\nContent-Length: 100000\r\n\r\n" + body);
      status = third.read_answer().status;
    }
    EXPECT_EQ(status, 200);
  }
}

TEST(HttpServer, DropsAClientThatStopsReadingAResponse) {
  HttpServerOptions options;
  options.write_timeout = 300ms;
  options.max_queued_bytes = std::size_t{1} << 30;  // not what this is about
  Catcher catcher;
  HttpServer server(options, catcher.handler());
  RawHttpClient client(server.port(), 4096);
  client.request("GET", "/");
  const Responder responder = catcher.wait();
  responder.begin_stream(200, "text/plain");
  // More than the system takes, in small writes: one of them stays open.
  bool open = true;
  for (int i = 0; i < 2000 && open; ++i) {
    open = responder.write(std::string(16384, 'x'));
    std::this_thread::sleep_for(1ms);
  }
  for (int i = 0; i < 100 && open; ++i) {
    std::this_thread::sleep_for(100ms);
    open = responder.write("x");
  }
  EXPECT_FALSE(open);
}

TEST(HttpServer, ARequestThatNobodyAnswersGetsAnError) {
  HttpServer server({}, [](const HttpRequest& request, const Responder& responder) {
    if (request.path == "/stream") responder.begin_stream(200, "text/plain");
  });
  RawHttpClient client(server.port());
  client.request("GET", "/");
  EXPECT_EQ(client.read_answer().status, 500);
  client.request("GET", "/stream");
  EXPECT_EQ(client.read_answer().status, 200);
  EXPECT_TRUE(client.closes()) << "a stream that breaks off must not look like one that ended";
}

TEST(HttpServer, DrainWaitsForRunningRequestsOnly) {
  Catcher catcher;
  HttpServer server({}, catcher.handler());
  RawHttpClient idle(server.port()), busy(server.port());
  busy.request("GET", "/");
  const Responder responder = catcher.wait();
  auto drained = std::async(std::launch::async, [&] { return server.drain(20s); });
  EXPECT_TRUE(idle.closes());
  EXPECT_EQ(drained.wait_for(100ms), std::future_status::timeout);
  EXPECT_FALSE(RawHttpClient(server.port()).connected());
  responder.send(200, "text/plain", "done");
  const HttpAnswer answer = busy.read_answer();
  EXPECT_EQ(answer.body, "done");
  EXPECT_PRED2(contains, answer.head, "Connection: close");
  busy.close();
  EXPECT_TRUE(drained.get());
}

TEST(HttpServer, DrainGivesUpAndStopCutsOff) {
  Catcher catcher;
  std::optional<HttpServer> server(std::in_place, HttpServerOptions{}, catcher.handler());
  RawHttpClient client(server->port());
  client.request("GET", "/");
  const Responder responder = catcher.wait();
  std::atomic<bool> gone = false;
  responder.on_disconnect([&] { gone = true; });
  EXPECT_FALSE(server->drain(50ms));
  server.reset();
  EXPECT_TRUE(gone);
  EXPECT_TRUE(client.closes());
  responder.send(200, "text/plain", "to nobody");  // does no harm
}

TEST(HttpServer, SaysWhichPortIsTaken) {
  HttpServer first({}, echo);
  HttpServerOptions options;
  options.port = first.port();
  try {
    HttpServer second(options, echo);
    FAIL();
  } catch (const Error& error) {
    EXPECT_PRED2(contains, error.what(), "127.0.0.1:" + std::to_string(first.port()));
    EXPECT_PRED2(contains, error.what(), "--port");
  }
}

TEST(HttpServer, LimitsConnections) {
  HttpServerOptions options;
  options.max_connections = 2;
  std::promise<Responder> waiting;
  HttpServer server(options, [&](const HttpRequest& request, Responder responder) {
    if (request.path == "/later") return waiting.set_value(std::move(responder));
    echo(request, responder);
  });
  RawHttpClient busy(server.port()), idle(server.port());
  busy.request("GET", "/later");
  const Responder later = waiting.get_future().get();
  idle.request("GET", "/");
  EXPECT_EQ(idle.read_answer().status, 200);
  std::this_thread::sleep_for(50ms);
  RawHttpClient third(server.port());  // for whom the idle one makes room
  EXPECT_TRUE(idle.closes());
  third.send("GET / HTTP/1.1\r\n");  // and is busy from now on
  std::this_thread::sleep_for(500ms);
  RawHttpClient fourth(server.port());
  EXPECT_TRUE(fourth.closes());
  third.send("Host: t\r\n\r\n");
  EXPECT_EQ(third.read_answer().status, 200);
  later.send(200, "text/plain", "now");
  EXPECT_EQ(busy.read_answer().body, "now");
}

TEST(HttpServer, RefusesWhatOthersMayReadInAnotherWay) {
  HttpServer server({}, echo);
  const auto status = [&](const std::string& headers) {
    RawHttpClient client(server.port());
    client.send("POST / HTTP/1.1\r\nHost: t\r\n" + headers + "\r\n0\r\n\r\n");
    return client.read_answer().status;
  };
  EXPECT_EQ(status("Transfer-Encoding: Chunked\r\n"), 200);
  EXPECT_EQ(status("Transfer-Encoding: identity\r\n"), 501);
  EXPECT_EQ(status("Transfer-Encoding: gzip, chunked\r\n"), 501);
  EXPECT_EQ(status("Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n"), 400);
  EXPECT_EQ(status("Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n"), 501);
  EXPECT_EQ(status("Host: u\r\nContent-Length: 0\r\n"), 400);
}

TEST(HttpServer, ALineWithinABodyHasAnEnd) {
  HttpServer server({}, echo);
  RawHttpClient client(server.port());
  client.send("POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n1;" + std::string(300'000, 'a'));
  EXPECT_EQ(client.read_answer().status, 400);
}

TEST(HttpServer, ServesManyAtOnceFromAnyThread) {
  std::mutex mutex;
  std::vector<std::thread> threads;
  HttpServer server({}, [&](const HttpRequest& request, Responder responder) {
    const std::lock_guard lock(mutex);
    threads.emplace_back([path = request.path, responder] {
      responder.begin_stream(200, "text/plain");
      for (int i = 0; i < 20; ++i) responder.write(path);
      responder.end();
    });
  });
  std::vector<std::thread> clients;
  std::atomic<int> right = 0;
  for (int i = 0; i < 20; ++i) {
    clients.emplace_back([&, i] {
      RawHttpClient client(server.port());
      const std::string path = "/" + std::to_string(i);
      for (int round = 0; round < 10; ++round) {
        client.request("GET", path);
        std::string expected;
        for (int n = 0; n < 20; ++n) expected += path;
        if (client.read_answer().body == expected) ++right;
      }
    });
  }
  for (auto& client : clients) client.join();
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(right, 200);
}

TEST(HttpServer, DecodesPercents) {
  EXPECT_EQ(percent_decode("a%2Fb%20c"), "a/b c");
  EXPECT_EQ(percent_decode("100%"), "100%");
  EXPECT_EQ(percent_decode("%zz%4"), "%zz%4");
}

}  // namespace
}  // namespace shoal
