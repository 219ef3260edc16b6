// Memory: a buffer that grows and stays, and a table that takes what is written.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>

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

// Of a size that never changes. Pages to which nothing was written take no memory: they are kept
// small, as of a large one with one row in use the rest would be taken too.
class Table {
 public:
  // Throws std::bad_alloc if there is no room for all of it.
  explicit Table(std::size_t size)
      : bytes_(size * sizeof(float)),
        data_(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) {
    if (data_ == MAP_FAILED) throw std::bad_alloc();
    madvise(data_, bytes_, MADV_NOHUGEPAGE);  // fails where there are none
  }
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;
  ~Table() { munmap(data_, bytes_); }

  float* at(std::size_t index) { return static_cast<float*>(data_) + index; }
  const float* at(std::size_t index) const { return static_cast<const float*>(data_) + index; }

 private:
  const std::size_t bytes_;
  void* const data_;
};

}  // namespace corom
