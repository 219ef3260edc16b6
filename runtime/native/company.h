// Whether threads that wait for each other between steps are worth it.
#pragma once

#include <algorithm>
#include <chrono>

namespace corom {

// Where others use the CPUs too, a member that loses its CPU to them for a slice of some
// milliseconds keeps all waiting, at every step anew: one text took eighteen times as long by two
// threads as undisturbed. So if that goes on the caller does without the others for a while, each
// time for longer, and then tries again.
class Company {
 public:
  using Clock = std::chrono::steady_clock;

  bool is_welcome(Clock::time_point now) const { return now >= again_; }

  // Note one execution: how long it took `members`, and how much of that the caller waited for
  // some who had lost their CPU.
  void note(Clock::duration took, Clock::duration waited, int members, Clock::time_point now) {
    if (noted_++ == 0) since_ = now;
    const bool alone_is_faster = members * (took - waited) < took;
    balance_ += waited > TOLERABLE && alone_is_faster ? 1 : -1;
    if (noted_ < LEAST || now - since_ < TRIAL) return;
    if (balance_ > 0) {
      pause_ = std::clamp<Clock::duration>(2 * pause_, LEAST_PAUSE, MOST_PAUSE);
      again_ = now + pause_;
    } else {
      pause_ /= 2;
    }
    noted_ = balance_ = 0;
  }

 private:
  static constexpr int LEAST = 4;
  static constexpr std::chrono::microseconds TOLERABLE{500};
  // Threads that wake may be on one CPU at first, and are moved apart within a tenth of a second.
  static constexpr std::chrono::milliseconds TRIAL{200}, LEAST_PAUSE{500}, MOST_PAUSE{5000};

  int noted_ = 0, balance_ = 0;  // executions; those held up, less those that were not
  Clock::time_point since_, again_;
  Clock::duration pause_{};
};

}  // namespace corom
