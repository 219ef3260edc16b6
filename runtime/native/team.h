// Threads that do one piece of work together, step by step.
#pragma once

#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <thread>
#include <vector>

namespace corom {

class Team {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Team(int size) : size_(size) {
    try {
      for (int member = 1; member < size; member++) {
        helpers_.emplace_back([this, member] { help(member); });
      }
    } catch (...) {  // no more threads
      dismiss();
      throw;
    }
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  ~Team() { dismiss(); }

  int size() const { return size_; }

  // Let every member execute `work(member)`, the caller as member 0; back when all are done.
  void run(const std::function<void(int)>& work) {
    work_ = &work;
    waited_ = {};
    awake_ = false;
    begin();
    work(0);
    meet(0);
    took_ = Clock::now() - since_;
  }

  // How long the last run took from when all were awake, and how much of that the caller waited for
  // members who had lost their CPU.
  Clock::duration took() const { return took_; }
  Clock::duration waited() const { return waited_; }

  // Wait until every member is here. Spins, as steps are shorter than falling asleep; gives way
  // to others if a member is late, which has lost its CPU then.
  void meet(int member) {
    if (size_ == 1) return;
    const unsigned meeting = meetings_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == size_ - 1) {
      arrived_.store(0, std::memory_order_relaxed);
      meetings_.store(meeting + 1, std::memory_order_release);
      if (member == 0) wake();
      return;
    }
    for (int turn = 0; meetings_.load(std::memory_order_acquire) == meeting; turn++) {
      if (turn == PATIENCE) {
        const Clock::time_point since = Clock::now();
        while (meetings_.load(std::memory_order_acquire) == meeting) sched_yield();
        if (member == 0 && awake_) waited_ += Clock::now() - since;
        break;
      }
      _mm_pause();
    }
    if (member == 0) wake();
  }

 private:
  static constexpr int PATIENCE = 1000;

  void wake() {
    if (awake_) return;
    awake_ = true;
    since_ = Clock::now();
  }

  void dismiss() {
    stopping_ = true;
    begin();
    for (std::thread& helper : helpers_) helper.join();
  }

  void begin() {
    begun_.fetch_add(1, std::memory_order_release);
    begun_.notify_all();
  }

  void help(int member) {
    for (unsigned seen = 0;; seen++) {
      begun_.wait(seen, std::memory_order_acquire);
      if (stopping_) return;
      (*work_)(member);
      meet(member);
    }
  }

  const int size_;
  const std::function<void(int)>* work_ = nullptr;
  // The caller's
  bool awake_ = false;
  Clock::time_point since_;
  Clock::duration took_{}, waited_{};
  bool stopping_ = false;
  alignas(64) std::atomic<unsigned> begun_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> meetings_{0};
  std::vector<std::thread> helpers_;
};

}  // namespace corom
