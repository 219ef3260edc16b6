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
    const std::int64_t each = std::max<std::int64_t>(1, tokens / (PART * members));
    std::vector<Texts> parts = cut(texts, tokens, each * members);
    return parts.empty() && each > 1 ? cut(texts, tokens, members) : parts;
  }

  // `count` parts of about as many tokens; none if one would have a quarter of a thread's share
  // more than the mean.
  std::vector<Texts> cut(const Texts& texts, std::int64_t tokens, std::int64_t count) const {
    std::vector<Texts> parts;
    std::int64_t before = 0, begun = 0;
    for (int text = 0, first = 0; text < texts.count; text++) {
      before += texts.lengths[text];
      if (text + 1 < texts.count) {
        // Not yet, if half of the next text belongs to this part.
        const std::int64_t middle = 2 * before + texts.lengths[text + 1];
        if (middle * count < 2 * tokens * std::int64_t(parts.size() + 1)) continue;
      }
      const double above = double(before - begun) - double(tokens) / double(count);
      if (above * 4 * team_.size() > double(tokens)) return {};
      parts.push_back({texts.ids + std::size_t(first) * texts.width, texts.lengths + first,
                       text + 1 - first, texts.width});
      first = text + 1;
      begun = before;
    }
    return parts;
  }

  void run_together(const Texts& texts, float* vectors) {
    spaces_[0].reserve(model_, texts, team_.size());
    team_.run([&](int member) {
      encode_texts(model_, texts, spaces_[0], member, team_.size(), vectors,
                   [this] { team_.meet(); });
    });
  }

  void run_apart(const Texts& texts, const std::vector<Texts>& parts, float* vectors) {
    for (Space<Number>& space : spaces_) {
      for (const Texts& part : parts) space.reserve(model_, part, 1);
    }
    std::atomic<std::size_t> next = 0;
    team_.run([&](int member) {
      for (std::size_t number; (number = next++) < parts.size();) {
        const Texts& part = parts[number];
        const std::size_t row = part.lengths - texts.lengths;
        spaces_[member].reserve(model_, part, 1);  // has the memory: it cannot fail
        encode_texts(model_, part, spaces_[member], 0, 1, vectors + row * model_.width, [] {});
      }
    });
  }

  const Model<Number>& model_;
  Team team_;
  std::vector<Space<Number>> spaces_;
};

}  // namespace corom
