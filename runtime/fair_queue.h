#pragma once
#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

namespace shoal {

/// Whose turn it is. Requests of one client wait in the order in which they came; among clients it is the turn of the
/// one that has been served least. Service is counted in computed tokens, as in virtual token counters (Sheng et al.,
/// "Fairness in Serving Large Language Models", OSDI 2024). Who comes back, or comes for the first time, starts at the
/// *virtual time*, what a client that always had work would have got by then (weighted fair queueing: it grows by the
/// work done divided by the number of clients with work): so idling saves up nothing, and newcomers, however many,
/// never keep anyone waiting for ever.
class FairQueue {
 public:
  /// A request joins its client's queue.
  void push(const std::string& client, std::uint64_t request);
  /// The request whose turn it is.
  std::optional<std::uint64_t> front() const;
  /// It is no longer waiting, but its client is being served.
  void pop();
  /// A request that waits is taken out.
  void remove(const std::string& client, std::uint64_t request);
  /// A request that was popped has ended.
  void leave(const std::string& client);

  /// Tokens were computed for a client with requests.
  void charge(const std::string& client, int tokens);
  /// Tokens computed for it so far, and what it had to start with: least first.
  double served(const std::string& client) const { return clients_.at(client).served; }

  int waiting() const { return waiting_; }
  /// Of those whose names begin so.
  int waiting_of(std::string_view beginning) const;
  void clear();

 private:
  struct Client {
    double served = 0;
    int requests = 0;  // waiting or popped
    std::deque<std::uint64_t> waiting;
  };
  using Clients = std::unordered_map<std::string, Client>;
  Clients::const_iterator next() const;
  void end_request(Clients::iterator client);

  Clients clients_;  // those with requests, and those that have got more than the virtual time
  double virtual_time_ = 0;
  int active_ = 0;  // clients with requests
  int waiting_ = 0;
};

}  // namespace shoal
