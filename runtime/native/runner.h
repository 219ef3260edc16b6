// Executes batches, one at a time, by the threads of a team.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "company.h"
#include "model.h"
#include "steps.h"
#include "team.h"

namespace corom {

// An execution that can be put aside for another, by another runner of the same thread.
struct Preemption {
  const std::atomic<int>* wanted;  // null: by none
  void (*serve)();                 // back when the other is done; throws nothing

  void operator()() const {
    if (wanted != nullptr && wanted->load(std::memory_order_relaxed) != 0) serve();
  }
};

class AnyRunner {
 public:
  virtual ~AnyRunner() = default;
  // Whether the model has a vector for every id, and positions for every length.
  virtual bool can_run(const Texts& texts) const = 0;
  virtual void run(const Texts& texts, float* vectors, const Preemption& preempt) = 0;
};

template <typename Number>
class Runner : public AnyRunner {
 public:
  Runner(const Model<Number>& model, int threads)
      : model_(model), team_(threads), spaces_(threads), first_tokens_(threads) {}

  bool can_run(const Texts& texts) const override {
    for (int text = 0; text < texts.count; text++) {
      const std::int64_t length = texts.lengths[text];
      if (length < 1 || length > texts.width || length > model_.positions_there) return false;
      const std::int64_t* ids = texts.ids + std::size_t(text) * texts.width;
      const auto unknown = [&](std::int64_t id) { return id < 0 || id >= model_.vocabulary; };
      if (std::any_of(ids, ids + length, unknown)) return false;
    }
    return true;
  }

  // By several threads it is not put aside: the others would wait for the one that is.
  void run(const Texts& texts, float* vectors, const Preemption& wanted) override {
    const Preemption preempt = team_.size() == 1 ? wanted : Preemption{nullptr, nullptr};
    if (const EmbeddedProjections* embedded = model_.embedded()) {
      std::vector<std::int64_t> unknown;
      for (int text = 0; text < texts.count; text++) {
        embedded->find_unknown(texts.ids + std::size_t(text) * texts.width,
                               int(texts.lengths[text]), unknown);
      }
      if (!unknown.empty()) embedded->learn(unknown);
    }
    const std::vector<Texts> parts = in_parts(texts);
    if (parts.empty())
      run_together(texts, vectors, preempt);
    else
      run_apart(texts, parts, vectors, preempt);
  }

 private:
  // Tokens for each thread from which on threads take whole texts, and do not wait for each other
  // between two steps; and of what they take at once, if there is enough.
  static constexpr int APART = 64, PART = 128, PART_BY_AMX = 256;

  // Whole texts in parts, some for each thread; none if there is too little for that.
  std::vector<Texts> in_parts(const Texts& texts) const {
    const int members = team_.size();
    std::int64_t tokens = 0;
    for (int text = 0; text < texts.count; text++) tokens += texts.lengths[text];
    if (tokens < APART * members) return {};
    const std::int64_t share = (model_.uses_amx ? PART_BY_AMX : PART) * members;
    const std::int64_t each = std::max<std::int64_t>(1, (tokens + share / 2) / share);
    std::vector<Texts> parts = cut(texts, tokens, each * members);
    return parts.empty() && each > 1 ? cut(texts, tokens, members) : parts;
  }

  // `count` parts of about as many tokens; none if a thread would have a quarter above the mean.
  std::vector<Texts> cut(const Texts& texts, std::int64_t tokens, std::int64_t count) const {
    std::vector<Texts> parts;
    std::vector<std::int64_t> loads(team_.size());
    std::int64_t before = 0, begun = 0;
    for (int text = 0, first = 0; text < texts.count; text++) {
      before += texts.lengths[text];
      if (text + 1 < texts.count) {
        // Not yet, if half of the next text belongs to this part.
        const std::int64_t middle = 2 * before + texts.lengths[text + 1];
        if (middle * count < 2 * tokens * std::int64_t(parts.size() + 1)) continue;
      }
      parts.push_back({texts.ids + std::size_t(first) * texts.width, texts.lengths + first,
                       text + 1 - first, texts.width});
      std::int64_t& load = *std::min_element(loads.begin(), loads.end());  // who is free takes it
      load += before - begun;
      if (load * team_.size() * 4 > tokens * 5) return {};
      first = text + 1;
      begun = before;
    }
    return parts;
  }

  void run_together(const Texts& texts, float* vectors, const Preemption& preempt) {
    Space<Number>& space = spaces_[0];
    FirstTokens<Number>& first = first_tokens_[0];
    space.reserve(model_, {texts}, team_.size());
    space.begin(texts);
    if (!model_.mean_pooled) {
      first.reserve(model_, texts.count);
      first.clear();
      first.add(model_, texts.count, vectors);
      first.begin(model_);
    }
    const auto encode = [&](int member, int members, const auto& meet) {
      encode_texts(model_, texts, space, first, 0, member, members, vectors, meet);
      if (!model_.mean_pooled) encode_first_tokens(model_, first, member, members, meet);
    };
    if (team_.size() == 1 || !company_.is_welcome(Company::Clock::now())) {
      encode(0, 1, preempt);
      return;
    }
    team_.run([&](int member) { encode(member, team_.size(), [&] { team_.meet(member); }); });
    company_.note(team_.took(), team_.waited(), team_.size(), Company::Clock::now());
  }

  void run_apart(const Texts& texts, const std::vector<Texts>& parts, float* vectors,
                 const Preemption& preempt) {
    std::size_t most_texts = 0;
    for (const Texts& part : parts) most_texts = std::max(most_texts, std::size_t(part.count));
    for (int member = 0; member < team_.size(); member++) {
      spaces_[member].reserve(model_, parts, 1);
      first_tokens_[member].clear();
      if (!model_.mean_pooled)
        first_tokens_[member].reserve(model_, most_texts + FirstTokens<Number>::ENOUGH - 1);
    }
    std::atomic<std::size_t> next = 0;
    team_.run([&](int member) {
      const auto meet = [&] { preempt(); };
      FirstTokens<Number>& first = first_tokens_[member];
      const auto encode_first = [&] {
        first.begin(model_);
        encode_first_tokens(model_, first, 0, 1, meet);
        first.clear();
      };
      for (std::size_t number; (number = next++) < parts.size();) {
        const Texts& part = parts[number];
        float* const into = vectors + std::size_t(part.lengths - texts.lengths) * model_.width;
        spaces_[member].begin(part);
        const int row = model_.mean_pooled ? 0 : first.add(model_, part.count, into);
        encode_texts(model_, part, spaces_[member], first, row, 0, 1, into, meet);
        if (first.flow.count >= FirstTokens<Number>::ENOUGH) encode_first();
      }
      if (first.flow.count > 0) encode_first();
    });
  }

  const Model<Number>& model_;
  Team team_;
  Company company_;
  std::vector<Space<Number>> spaces_;              // one a member
  std::vector<FirstTokens<Number>> first_tokens_;  // the same
};

}  // namespace corom
