// Memory: a buffer that grows and stays, and an arena for what is kept as long as the model.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>
#include <vector>

namespace corom {

constexpr std::size_t CACHE_LINE = 64;

// Aligned to a cache line, its contents undefined after growing.
template <typename T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(std::size_t size) { reserve(size); }
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  ~Buffer() { std::free(data_); }

  void reserve(std::size_t size) {
    if (size <= size_) return;
    const std::size_t bytes = (size * sizeof(T) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    void* data = std::aligned_alloc(CACHE_LINE, bytes);
    if (data == nullptr) throw std::bad_alloc();
    std::free(data_);
    data_ = static_cast<T*>(data);
    size_ = size;
  }

  T* at(std::size_t index) { return data_ + index; }
  const T* at(std::size_t index) const { return data_ + index; }

 private:
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

// What stays where it is as long as the model is open, freed together. In pages of 2 MB where the
// system has them: much of it is read for every text, and of small pages most would have to be
// looked up each time.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() {
    for (const Chunk& chunk : chunks_) munmap(chunk.data, chunk.bytes);
  }

  // Room for `size` values, aligned to a cache line; zeros, whose pages take no memory until
  // something is written there. Throws std::bad_alloc if there is none.
  template <typename T>
  T* take(std::size_t size) {
    const std::size_t bytes = (size * sizeof(T) + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    if (bytes > left_) add_chunk(bytes);
    left_ -= bytes;
    return reinterpret_cast<T*>(std::exchange(next_, next_ + bytes));
  }

 private:
  static constexpr std::size_t PAGE = std::size_t(2) << 20, CHUNK = 16 * PAGE;

  struct Chunk {
    void* data;
    std::size_t bytes;
  };

  void add_chunk(std::size_t least) {
    const std::size_t bytes = std::max(CHUNK, (least + PAGE - 1) / PAGE * PAGE);
    chunks_.reserve(chunks_.size() + 1);
    void* data = mmap(nullptr, bytes + PAGE, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    chunks_.push_back({data, bytes + PAGE});
    void* aligned = data;
    std::size_t there = bytes + PAGE;
    next_ = static_cast<std::byte*>(std::align(PAGE, bytes, aligned, there));
    left_ = bytes;
    madvise(next_, bytes, MADV_HUGEPAGE);  // fails where there are none
  }

  std::vector<Chunk> chunks_;
  std::byte* next_ = nullptr;
  std::size_t left_ = 0;
};

}  // namespace corom
