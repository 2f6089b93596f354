#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>

namespace shoal {

/// Whose turn it is. Clients take turns, and a client's users take its turns: so many users, or names for one, get a
/// client no more than others. A user's requests wait in the order of their numbers, which grow as requests come.
///
/// At either level it is the turn of who has been served least. Service is counted in computed tokens, as in virtual
/// token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). Who comes back, or comes for
/// the first time, starts at the *virtual time*, what somebody who always had work would have got by then (weighted
/// fair queueing: it grows by the work done divided by the number of those with work): so idling saves up nothing, and
/// newcomers, however many, never keep anyone waiting for ever.
class FairQueue {
 public:
  FairQueue() = default;
  FairQueue(const FairQueue&) = delete;  // members know where their group is

  /// A request waits. Error when the number is in use.
  void push(const std::string& client, const std::string& user, std::uint64_t request);
  /// The request whose turn it is.
  std::optional<std::uint64_t> front() const;
  /// It is no longer waiting, but is being served.
  void pop();
  /// A request is over, whether it waited or was served.
  void leave(std::uint64_t request);

  /// Tokens were computed for a request.
  void charge(std::uint64_t request, int tokens);
  /// Tokens computed so far for a request's client, and for its user among the client's, with what they had to start
  /// with: least first.
  std::pair<double, double> served(std::uint64_t request) const;

  int waiting() const { return all_.waiting; }
  int waiting_of(const std::string& client) const;
  void clear();

 private:
  /// What somebody has got, and their request whose turn it is: the least is next. No two share a request.
  using Turn = std::pair<double, std::uint64_t>;
  /// A user, a client with its users, or the clients all together.
  struct Member {
    Member* group = nullptr;  // of which it is one
    std::string name;
    double served = 0;  // beside others of the group
    int requests = 0;   // waiting or popped
    int waiting = 0;
    std::set<Turn> turns;  // of its own members, those for whom a request waits; of a user, the requests that do

    // Its own members: those with requests, and those that have got more than the virtual time.
    std::unordered_map<std::string, std::unique_ptr<Member>> members;
    double virtual_time = 0;
    int active = 0;                             // members with requests
    std::set<std::pair<double, Member*>> idle;  // those without, by what they have got

    Turn turn() const { return {served, turns.begin()->second}; }
    Member& member(const std::string& its_name);
    void forget_idle();
  };
  static void take_out(Member& member);
  static void put_back(Member& member);

  Member all_;
  std::unordered_map<std::uint64_t, Member*> users_;  // by request
};

}  // namespace shoal
