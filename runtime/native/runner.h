// Executes batches, one at a time, by the threads of a team.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "model.h"
#include "steps.h"
#include "team.h"

namespace corom {

class AnyRunner {
 public:
  virtual ~AnyRunner() = default;
  // Whether the model has a vector for every id, and positions for every length.
  virtual bool can_run(const Texts& texts) const = 0;
  virtual void run(const Texts& texts, float* vectors) = 0;
};

template <typename Number>
class Runner : public AnyRunner {
 public:
  Runner(const Model<Number>& model, int threads)
      : model_(model), team_(threads), spaces_(threads) {}

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

  void run(const Texts& texts, float* vectors) override {
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
      run_together(texts, vectors);
    else
      run_apart(texts, parts, vectors);
  }

 private:
  // Tokens for each thread from which on threads take whole texts, and do not wait for each other
  // between two steps; and of what they take at once, if there is enough.
  static constexpr int APART = 64, PART = 128;

  // Whole texts in parts, some for each thread; none if there is too little for that.
  std::vector<Texts> in_parts(const Texts& texts) const {
    const int members = team_.size();
    std::int64_t tokens = 0;
    for (int text = 0; text < texts.count; text++) tokens += texts.lengths[text];
    if (tokens < APART * members) return {};
    const std::int64_t share = PART * members;
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

  void run_together(const Texts& texts, float* vectors) {
    spaces_[0].reserve(model_, {texts}, team_.size());
    spaces_[0].begin(model_, texts);
    team_.run([&](int member) {
      encode_texts(model_, texts, spaces_[0], member, team_.size(), vectors,
                   [this] { team_.meet(); });
    });
  }

  void run_apart(const Texts& texts, const std::vector<Texts>& parts, float* vectors) {
    for (Space<Number>& space : spaces_) space.reserve(model_, parts, 1);
    std::atomic<std::size_t> next = 0;
    team_.run([&](int member) {
      for (std::size_t number; (number = next++) < parts.size();) {
        const Texts& part = parts[number];
        const std::size_t row = part.lengths - texts.lengths;
        spaces_[member].begin(model_, part);
        encode_texts(model_, part, spaces_[member], 0, 1, vectors + row * model_.width, [] {});
      }
    });
  }

  const Model<Number>& model_;
  Team team_;
  std::vector<Space<Number>> spaces_;
};

}  // namespace corom
