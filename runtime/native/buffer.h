// Memory that grows and stays: aligned to a cache line, its contents undefined after growing.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <new>
#include <utility>

namespace corom {

constexpr std::size_t CACHE_LINE = 64;

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

}  // namespace corom
